"""Tokenizing is incremental: unchanged shards are not encoded again, and the token shards are the same as in a first run."""

from pathlib import Path

import numpy as np
import pytest

from stages import tokenize_pairs, train_image_tokenizer
from tests.helpers.tiny_models import CAPTIONS, SIDE, flips, tiny
from tests.pipeline.test_data_stages import stage
from thousandwords import components
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.data.images import encode_png
from thousandwords.inference import tokenize_shard
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig

PAPER = {"augmentation": "paper", "views_per_image": 2}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The store is in the folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The number of rows in each call of the encoder."""
    calls, encode = [], tokenize_shard._encode

    def counted(model, images):
        calls.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(tokenize_shard, "_encode", counted)
    return calls


def write_pairs(folder: Path, count: int, rows_per_shard: int, changed: tuple[int, ...] = ()) -> None:
    """`count` images of noise; the `changed` ones have other pixels."""
    (folder / "own").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([number, number in changed]).integers(
            0, 256, (SIDE, SIDE + 4, 3), np.uint8
        )
        (folder / "own" / f"{number:04d}.png").write_bytes(encode_png(pixels))
        (folder / "own" / f"{number:04d}.txt").write_text(f"{CAPTIONS[number % 4]}\nimage {number}")
    settings = {"image_size": SIDE, "min_side": 8, "validation_share": 0.2, "keep": "whole"}
    config = DataConfig("folder", str(folder / "own"), rows_per_shard=rows_per_shard, **settings)
    ingest.write_pairs(config, 0, folder / "pairs")


@pytest.fixture
def few(tmp_path) -> Path:
    """40 pairs in shards of 4, and a tiny image tokenizer."""
    write_pairs(tmp_path, 40, rows_per_shard=4)
    components.save(tiny("image_tokenizers", "dvae"), tmp_path / "image_tokenizer")
    return tmp_path


def tokenized(folder: Path, out: str, seed: int = 0, **tokens: object) -> tuple[dict[str, bytes], int]:
    """(the written files, the number of encoded shards)"""
    context = stage("tokenize_pairs", tokens={"rows_per_shard": 7, **tokens})
    context.params["seed"] = seed
    tokenize_pairs.tokenize_pairs(folder / "pairs", folder / "image_tokenizer", folder / out, context)
    files = {path.name: path.read_bytes() for path in (folder / out).iterdir()}
    return files, context.tracker.figures["shards_encoded"]


def entries() -> list[Path]:
    return sorted(Path(".store/tokens").glob("*/rows.parquet"))


@pytest.mark.parametrize("settings", [{}, PAPER])
def test_a_changed_shard_is_encoded_alone_and_the_token_shards_are_those_of_a_first_run(
    few, settings, encoded
):
    before, first = tokenized(few, "tokens", **settings)
    assert first == len(list((few / "pairs").glob("[tv]*-*.parquet"))) == 11
    encoded.clear()
    write_pairs(few, 40, rows_per_shard=4, changed=(20,))
    mixed, again = tokenized(few, "tokens", **settings)
    assert again == 1 and encoded[0] == 4
    # two shards with its rows, and the manifest
    assert sum(before[name] != mixed[name] for name in before) <= 3

    Path(".store").rename("elsewhere")
    assert tokenized(few, "anew", **settings) == (mixed, 11)


def test_of_a_data_set_that_grows_only_what_is_new_is_encoded(few):
    tokenized(few, "tokens")
    write_pairs(few, 80, rows_per_shard=4)
    shards = len(list((few / "pairs").glob("[tv]*-*.parquet")))
    _, again = tokenized(few, "tokens")
    assert shards >= 20 and again <= shards - 11 + 2  # and the last shard of either split, if it was not full


def test_a_run_that_goes_on_from_the_tokenizer_of_another_encodes_only_the_new_shards_of_more_data(few):
    tokenized(few, "tokens")
    (few / "image_tokenizer").rename(few / "start")
    context = stage("train_image_tokenizer", image_tokenizer={"kind": "dvae", "init": str(few / "start")})
    write_pairs(few, 80, rows_per_shard=4)
    train_image_tokenizer.train_image_tokenizer(
        few / "pairs", few / "image_tokenizer", few / "curves.json", context
    )
    shards = len(list((few / "pairs").glob("[tv]*-*.parquet")))
    _, again = tokenized(few, "more tokens")
    assert shards >= 20 and again <= shards - 11 + 2


def test_an_input_that_is_changed_back_is_read_from_the_store(few, encoded):
    before, _ = tokenized(few, "before")
    write_pairs(few, 40, rows_per_shard=4, changed=(5,))
    tokenized(few, "changed")

    encoded.clear()
    write_pairs(few, 40, rows_per_shard=4)

    assert tokenized(few, "back") == (before, 0) and encoded == []


def test_a_killed_run_continues_with_the_shard_it_was_at(few, monkeypatch, encoded):
    sequential_batches, done = tokenize_shard.sequential_batches, []

    def killed_at_the_sixth(*arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return sequential_batches(*arguments)

    monkeypatch.setattr(tokenize_shard, "sequential_batches", killed_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        tokenized(few, "tokens")
    assert len(entries()) == 5 and not (few / "tokens" / "manifest.json").exists()

    monkeypatch.setattr(tokenize_shard, "sequential_batches", sequential_batches)
    encoded.clear()
    assert tokenized(few, "tokens")[1] == 6 and len(encoded) == 6


def test_damaged_entries_are_reported_and_encoded_again(few, capsys):
    whole, _ = tokenized(few, "whole")
    damaged = entries()[3]
    next(flips(damaged, 2))

    assert tokenized(few, "again")[0] == whole
    assert f"store: {damaged} is damaged: sha256 should be " in capsys.readouterr().err
    assert tokenized(few, "once more") == (whole, 0)


def test_damaged_pairs_are_rejected_even_if_their_tokens_are_stored(few):
    tokenized(few, "tokens")
    next(flips(sorted((few / "pairs").glob("train-*.parquet"))[2], 2))
    with pytest.raises(DamagedArtefact, match="train-00002.parquet is damaged"):
        tokenized(few, "tokens")


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"rows_per_shard": 3}, 0),  # changes only the cuts of token shards
        ({"seed": 1}, 0),  # nothing is random
        ({"batch_size": 3}, 11),  # changes the last bits of logits
        ({"augmentation": "paper"}, 8),  # held-out images are still center squares
        (PAPER, 11),
    ],
)
def test_every_setting_that_changes_tokens_changes_the_store_key(few, change, count):
    tokenized(few, "tokens", batch_size=8)
    assert len(list((few / "pairs").glob("train-*.parquet"))) == 8
    assert tokenized(few, "tokens", **{"batch_size": 8, **change})[1] == count


def test_another_tokenizer_or_other_code_encodes_all(few, monkeypatch):
    tokenized(few, "tokens")
    components.save(tiny("image_tokenizers", "dvae", seed=1), few / "image_tokenizer")
    assert tokenized(few, "tokens")[1] == 11
    monkeypatch.setattr(tokenize_pairs, "code_digest", lambda: "another version")
    assert tokenized(few, "tokens")[1] == 11


def test_only_entries_of_the_last_runs_are_kept(few):
    counts = [tokenized(few, "tokens", seed=seed, **PAPER)[1] for seed in range(6)]
    assert counts == [11] + [8] * 5  # another seed changes only the crops of training images
    # the training shards of four seeds, and the held-out ones that all share
    assert len(entries()) == 4 * 8 + 3
