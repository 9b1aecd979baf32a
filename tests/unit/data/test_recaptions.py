"""Second captions take the place of the original ones of the training pairs that have one, in memory and from disk."""

import pytest

from tests.helpers.sources import scenes_config
from thousandwords.core.cache import Store
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.recaptions import (
    RecaptionConfig,
    is_recaptioned,
    open_recaptions,
    recaption_table,
    write_recaptions,
)
from thousandwords.ingest.ingest import write_pairs

KEY = "scene-train-{:06d}"


@pytest.fixture
def pairs(tmp_path):
    """Ten training pairs in shards of four, four held-out ones."""
    write_pairs(scenes_config(10, rows_per_shard=4), 0, tmp_path / "pairs")
    return tmp_path / "pairs"


def write_second(pairs, folder, rows=(1, 5, 6)):
    """Second captions of some rows, which begin with "second"."""
    tables = {}
    for shard in range(3):
        of_shard = [row for row in rows if row // 4 == shard]
        keys, texts = [KEY.format(row) for row in of_shard], [f"second {row}" for row in of_shard]
        tables[f"train-{shard:05d}.parquet"] = recaption_table(keys, texts, "captioner 3f9c, seed 0")
    write_recaptions(folder, tables, {"captioner": "3f9c", "pairs": read_manifest(pairs)["sha256"]})
    return folder


@pytest.mark.parametrize("is_in_memory", [True, False])
def test_a_reader_gives_the_second_caption_alone_where_there_is_one(pairs, tmp_path, is_in_memory):
    recaptions = open_recaptions(write_second(pairs, tmp_path / "second"), pairs)
    store, limit = Store(tmp_path / "store"), 2**29 if is_in_memory else 0
    plain = PairReader(pairs, "train", store, limit)

    reader = PairReader(pairs, "train", store, limit, recaptions)

    for row in range(10):
        expected = [f"second {row}"] if row in (1, 5, 6) else plain.captions(row)
        assert reader.captions(row) == expected and reader.key(row) == plain.key(row)
    assert (reader.images(range(10)) == plain.images(range(10))).all()
    assert reader.fingerprint != plain.fingerprint  # a training on them is another run
    again = open_recaptions(write_second(pairs, tmp_path / "again", rows=(1,)), pairs)
    assert PairReader(pairs, "train", store, limit, again).captions(5) == plain.captions(5)


def test_held_out_pairs_keep_their_captions(pairs, tmp_path):
    recaptions = open_recaptions(write_second(pairs, tmp_path / "second"), pairs)
    held_out, plain = PairReader(pairs, "validation", recaptions=recaptions), PairReader(pairs, "validation")
    assert [held_out.captions(row) for row in range(4)] == [plain.captions(row) for row in range(4)]


@pytest.mark.parametrize("has_folder", [True, False])
def test_without_a_captioner_nothing_changes(pairs, tmp_path, has_folder):
    write_recaptions(tmp_path / "none", {}, {"captioner": None})
    recaptions = open_recaptions(tmp_path / "none" if has_folder else None, pairs)
    reader, plain = PairReader(pairs, "train", recaptions=recaptions), PairReader(pairs, "train")
    assert recaptions.fingerprint is None and reader.fingerprint == plain.fingerprint
    assert [reader.captions(row) for row in range(10)] == [plain.captions(row) for row in range(10)]


def test_second_captions_of_other_pairs_are_rejected(pairs, tmp_path):
    folder = write_second(pairs, tmp_path / "second")
    write_pairs(scenes_config(9), 0, tmp_path / "other")
    with pytest.raises(UserError) as caught:
        open_recaptions(folder, tmp_path / "other")
    names = [read_manifest(each)["sha256"][:12] for each in (pairs, tmp_path / "other")]
    assert str(caught.value) == (
        f"{folder} was written for the pairs {names[0]}, but {tmp_path / 'other'} holds {names[1]}. Run: dvc repro recaption"
    )


def test_a_damaged_file_of_second_captions_is_rejected(pairs, tmp_path):
    folder = write_second(pairs, tmp_path / "second")
    path = folder / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedArtefact, match="train-00001.parquet should be .* Run: make repair"):
        open_recaptions(folder, pairs).of_shard(path.name)


def test_a_larger_share_has_the_pairs_of_a_smaller_one():
    keys = [str(number) for number in range(2000)]
    chosen = {share: {key for key in keys if is_recaptioned(key, 0, share)} for share in (0, 0.3, 0.95, 1)}
    assert chosen[0] < chosen[0.3] < chosen[0.95] < chosen[1] == set(keys)
    assert 1860 < len(chosen[0.95]) < 1940
    assert {key for key in keys if is_recaptioned(key, 1, 0.3)} != chosen[0.3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recaption_share": 1.5}, "captioner.recaption_share is 1.5; it lies between 0 and 1"),
        ({"candidates": 0}, "captioner.candidates is 0; it needs to be 1 or more"),
        ({"top_p": 0.0}, "captioner.top_p is 0.0; it needs to be in (0, 1], or null"),
        (
            {"recaption_shares": 0.5},
            "captioner has no key 'recaption_shares'. Did you mean 'recaption_share'?",
        ),
    ],
)
def test_a_wrong_setting_is_rejected(settings, message):
    with pytest.raises(ConfigError) as caught:
        section(settings, "captioner", RecaptionConfig)
    assert str(caught.value) == f"params.yaml: {message}"
