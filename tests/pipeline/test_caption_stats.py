"""Counts of captions for the data card, from real pair shards."""

import pytest

from flows.registry.cards import data_card
from tests.helpers.images import photo
from tests.pipeline.test_near_duplicates import add, config
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.data.pair_shards import caption_counts
from thousandwords.ingest.ingest import write_pairs


@pytest.fixture
def pairs(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for number in range(20):
        add(own, f"{number:03d}", photo(number, 32), "a cat\na very large cat" if number % 2 else "a cat")
    write_pairs(config(own, near_duplicates="none"), 0, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_captions_of_the_first_training_shard_are_counted(pairs):
    captions = caption_counts(pairs)

    train = read_manifest(pairs)["facts"]["counts"]["splits"]["train"]
    assert captions["pairs"] == train and captions["distinct"] == 2
    assert train < captions["captions"] < 2 * train
    assert captions["words"] == {"least": 2, "median": 2, "most": 4}
    assert f"The first {train} training pairs" in data_card("cats", read_manifest(pairs), captions)


def test_captions_of_a_damaged_shard_are_not_counted(pairs):
    (pairs / "train-00000.parquet").write_bytes(b"")
    with pytest.raises(DamagedArtefact, match="train-00000.parquet should be"):
        caption_counts(pairs)


def test_without_a_training_shard_there_is_nothing_to_count(tmp_path):
    write_manifest(tmp_path, {}, {"counts": {"splits": {}}})
    assert caption_counts(tmp_path) is None
