"""Tokenising is incremental: what has not changed is not encoded again, and nobody can tell from the token shards."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages import tokenize_pairs
from tests.test_data_stages import stage
from tests.tiny import CAPTIONS, SIDE, flips, tiny
from thousandwords import components, pairs
from thousandwords.files import DamagedArtefact
from thousandwords.images import encode_png

PAPER = {"augmentation": "paper", "views_per_image": 2}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The store goes where the test is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many rows each call of the encoder was given."""
    calls, encode = [], tokenize_pairs._encode
    monkeypatch.setattr(tokenize_pairs, "_encode", lambda model, shown: calls.append(len(shown)) or encode(model, shown))
    return calls


def write_pairs(folder: Path, count: int, rows_per_shard: int, changed: tuple[int, ...] = ()) -> None:
    """Pictures of noise, `count` of them; those that have `changed` have other pixels."""
    (folder / "own").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([number, number in changed]).integers(0, 256, (SIDE, SIDE + 4, 3), np.uint8)
        (folder / "own" / f"{number:04d}.png").write_bytes(encode_png(pixels))
        (folder / "own" / f"{number:04d}.txt").write_text(f"{CAPTIONS[number % 4]}\npicture {number}")
    config = pairs.Config(source="folder", path=str(folder / "own"), image_size=SIDE, min_side=8, validation_share=0.2,
                          rows_per_shard=rows_per_shard, keep="whole")  # fmt: skip
    pairs.write_pairs(config, 0, folder / "pairs")


@pytest.fixture
def few(tmp_path) -> Path:
    """40 pairs in shards of 4, and a tiny image tokenizer."""
    write_pairs(tmp_path, 40, rows_per_shard=4)
    components.save(tiny("tokenizers", "dvae"), tmp_path / "image_tokenizer")
    return tmp_path


def tokenized(folder: Path, out: str, seed: int = 0, **tokens: object) -> tuple[dict[str, bytes], int]:
    """(the files written, how many shards were encoded)"""
    run = stage("tokenize_pairs", tokens={"rows_per_shard": 7, **tokens})
    run.params["seed"] = seed
    tokenize_pairs.tokenize_pairs(folder / "pairs", folder / "image_tokenizer", folder / out, run)
    return {path.name: path.read_bytes() for path in (folder / out).iterdir()}, run.tracker.figures["shards_encoded"]


def entries() -> list[Path]:
    return sorted(Path(".store/tokens").glob("*/rows.parquet"))


def test_of_100_shards_one_of_which_has_changed_one_is_encoded(tmp_path, encoded):
    write_pairs(tmp_path, 300, rows_per_shard=3)
    components.save(tiny("tokenizers", "dvae"), tmp_path / "image_tokenizer")
    before, first = tokenized(tmp_path, "first", batch_size=8)
    assert first == len(list((tmp_path / "pairs").glob("[tv]*-*.parquet"))) == 101 and sum(encoded) == 300

    encoded.clear()
    write_pairs(tmp_path, 300, rows_per_shard=3, changed=(150,))
    after, again = tokenized(tmp_path, "second", batch_size=8)

    assert again == 1 and encoded == [3]
    assert sum(before[name] != after[name] for name in before) == 2  # the shard with that row, and the manifest


@pytest.mark.parametrize("settings", [{}, PAPER])
def test_the_token_shards_are_those_of_a_first_run(few, settings, encoded):
    tokenized(few, "tokens", **settings)
    write_pairs(few, 40, rows_per_shard=4, changed=(0, 20))
    mixed, count = tokenized(few, "tokens", **settings)
    assert 1 <= count <= 2

    Path(".store").rename("elsewhere")
    assert tokenized(few, "anew", **settings) == (mixed, 11)


def test_an_input_that_is_what_it_was_is_taken_from_the_store(few, encoded):
    before, _ = tokenized(few, "before")
    write_pairs(few, 40, rows_per_shard=4, changed=(5,))
    tokenized(few, "changed")

    encoded.clear()
    write_pairs(few, 40, rows_per_shard=4)

    assert tokenized(few, "back") == (before, 0) and encoded == []


def test_a_run_that_was_killed_goes_on_with_the_shard_it_was_at(few, monkeypatch, encoded):
    encode_shard, done = tokenize_pairs.encode_shard, []

    def killed_at_the_sixth(*arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return encode_shard(*arguments)

    monkeypatch.setattr(tokenize_pairs, "encode_shard", killed_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        tokenized(few, "tokens")
    assert len(entries()) == 5 and not (few / "tokens" / "manifest.json").exists()

    monkeypatch.setattr(tokenize_pairs, "encode_shard", encode_shard)
    encoded.clear()
    assert tokenized(few, "tokens")[1] == 6 and len(encoded) == 6


def test_damaged_entries_are_told_and_encoded_again(few, capsys):
    whole, _ = tokenized(few, "whole")
    damaged = entries()[3]
    next(flips(damaged, 2))

    assert tokenized(few, "again")[0] == whole
    assert f"store: {damaged} is damaged: sha256 should be " in capsys.readouterr().err
    assert tokenized(few, "once more") == (whole, 0)


def test_damaged_pairs_are_refused_though_the_store_knows_their_words(few):
    tokenized(few, "tokens")
    next(flips(sorted((few / "pairs").glob("train-*.parquet"))[2], 2))
    with pytest.raises(DamagedArtefact, match="train-00002.parquet is damaged"):
        tokenized(few, "tokens")


@pytest.mark.parametrize(("change", "count"), [
    ({"rows_per_shard": 3}, 0),  # only how token shards are cut
    ({"seed": 1}, 0),  # nothing is drawn
    ({"batch_size": 3}, 11),  # it moves the last bits of logits
    ({"augmentation": "paper"}, 8),  # held-out pictures are plain squares as before
    (PAPER, 11),
])  # fmt: skip
def test_what_words_follow_from_names_them(few, change, count):
    tokenized(few, "tokens", batch_size=8)
    assert len(list((few / "pairs").glob("train-*.parquet"))) == 8
    assert tokenized(few, "tokens", **{"batch_size": 8, **change})[1] == count


def test_another_seed_draws_other_crops_of_training_pictures_only(few):
    tokenized(few, "tokens", **PAPER)
    assert tokenized(few, "tokens", seed=1, **PAPER)[1] == 8


def test_another_tokenizer_or_other_code_encodes_all(few, monkeypatch):
    tokenized(few, "tokens")
    components.save(tiny("tokenizers", "dvae", seed=1), few / "image_tokenizer")
    assert tokenized(few, "tokens")[1] == 11
    monkeypatch.setattr(tokenize_pairs, "code_digest", lambda: "another version")
    assert tokenized(few, "tokens")[1] == 11


def test_only_what_the_last_runs_used_is_kept(few):
    for seed in range(6):
        tokenized(few, "tokens", seed=seed, **PAPER)
    assert len(entries()) == 4 * 8 + 3  # the training shards of four seeds, and the held-out ones that all share
