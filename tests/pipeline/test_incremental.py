"""Tokenizing is incremental: unchanged shards are not encoded again, and the token shards are the same as in a first run."""

from pathlib import Path

import pytest

from stages import tokenize_pairs, train_image_tokenizer
from tests.helpers.images import encoded, noise, write
from tests.helpers.sources import folder_config
from tests.helpers.tiny_models import CAPTIONS, SIDE, flips, tiny
from tests.pipeline.test_data_stages import stage
from thousandwords import components
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.inference import tokenize_shard
from thousandwords.ingest import ingest

PAPER = {"augmentation": "paper", "views_per_image": 2}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The store is in the folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The number of rows in each call of the encoder."""
    calls, encode = [], tokenize_shard._encode

    def counted(model, images):
        calls.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(tokenize_shard, "_encode", counted)
    return calls


def write_pairs(folder: Path, count: int, changed: tuple[int, ...] = ()) -> list[Path]:
    """Shards of 4 pairs, in all `count` images of noise; the `changed` ones have other pixels."""
    for number in range(count):
        image = encoded(noise(SIDE, SIDE + 4, number + 1000 * (number in changed)))
        caption = f"{CAPTIONS[number % 4]}\nimage {number}"
        write(folder / "own", {f"{number:04d}.png": image, f"{number:04d}.txt": caption})
    settings = {"image_size": SIDE, "min_side": 8, "validation_share": 0.2, "keep": "whole"}
    ingest.write_pairs(folder_config(folder / "own", rows_per_shard=4, **settings), 0, folder / "pairs")
    return list((folder / "pairs").glob("[tv]*-*.parquet"))


@pytest.fixture
def few(tmp_path) -> Path:
    """40 pairs, and a tiny image tokenizer."""
    write_pairs(tmp_path, 40)
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
    few, settings, batches
):
    before, first = tokenized(few, "tokens", **settings)
    batches.clear()
    shards = write_pairs(few, 40, changed=(20,))
    mixed, again = tokenized(few, "tokens", **settings)
    assert (len(shards), first, again, batches[0]) == (11, 11, 1, 4)
    # two shards with its rows, and the manifest
    assert sum(before[name] != mixed[name] for name in before) <= 3
    Path(".store").rename("elsewhere")
    assert tokenized(few, "anew", **settings) == (mixed, 11)


def test_of_data_that_grow_only_what_is_new_is_encoded_also_by_a_run_from_the_tokenizer_of_another(few):
    tokenized(few, "tokens")
    shards = write_pairs(few, 80)
    (few / "image_tokenizer").rename(few / "start")
    context = stage("train_image_tokenizer", image_tokenizer={"kind": "dvae", "init": str(few / "start")})
    paths = few / "pairs", few / "image_tokenizer", few / "curves.json"
    train_image_tokenizer.train_image_tokenizer(*paths, context)
    _, again = tokenized(few, "more tokens")
    # and the last shard of either split, if it was not full
    assert len(shards) >= 20 and again <= len(shards) - 11 + 2


def test_an_input_that_is_changed_back_is_read_from_the_store(few, batches):
    before, _ = tokenized(few, "before")
    write_pairs(few, 40, changed=(5,))
    tokenized(few, "changed")
    batches.clear()
    write_pairs(few, 40)
    assert tokenized(few, "back") == (before, 0) and batches == []


def test_a_killed_run_continues_with_the_shard_it_was_at(few, monkeypatch, batches):
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
    batches.clear()
    assert tokenized(few, "tokens")[1] == 6 and len(batches) == 6


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
