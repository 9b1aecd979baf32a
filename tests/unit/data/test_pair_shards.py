"""Pair shards: rows, columns, groups and splits, equal bytes for equal settings, checks of the source, and damage."""

import pyarrow.parquet as pq
import pytest

from tests.helpers.sources import files_of, folder_config, scenes_config
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.data import pair_shards
from thousandwords.data.images import decode_png
from thousandwords.data.pair_shards import PairReader, read_captions, splits
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import check_source, group_of, split_of, write_pairs
from thousandwords.ingest.records import Pair
from thousandwords.ingest.sources.base import SourceError


@pytest.mark.parametrize(("limit", "decodings"), [(2**29, 3), (0, 6)])
def test_squares_are_decoded_once_if_all_fit_into_memory_else_each_time(
    tmp_path, monkeypatch, limit, decodings
):
    write_pairs(scenes_config(), 0, tmp_path)
    reader, decoded = PairReader(tmp_path, "train"), []
    monkeypatch.setattr(pair_shards, "MAX_UNPACKED_BYTES", limit)
    monkeypatch.setattr(pair_shards, "decode_png", lambda data: decoded.append(data) or decode_png(data))
    first, second = reader.images([5, 2, 7]), reader.images([2, 7, 5])
    assert len(decoded) == decodings and (first[[1, 2, 0]] == second).all()
    second[:] = 0  # the returned array belongs to the caller
    assert (reader.images([5, 2, 7]) == first).all()


def test_the_rows_have_the_columns_of_pair_shards(tmp_path):
    write_pairs(scenes_config(), 0, tmp_path)
    row = pq.read_table(tmp_path / "unseen-00000.parquet").to_pylist()[0]
    assert sorted(row) == ["captions", "image", "key", "provenance", "split"]
    expected = {"key": "scene-unseen-000000", "split": "unseen", "provenance": "scenes, seed 0"}
    assert row.items() >= expected.items()
    assert row["image"].startswith(b"\x89PNG") and len(row["captions"]) == 1


def test_shards_have_rows_per_shard_and_the_manifest_counts_them(tmp_path):
    counts = write_pairs(scenes_config(10, rows_per_shard=4), 0, tmp_path)
    assert counts["splits"] == {"train": 10, "validation": 4, "unseen": 3}
    assert counts["n_in"] == counts["n_ok"] == check_source(scenes_config()) == 17
    assert splits(tmp_path) == ["train", "validation", "unseen"]
    assert {name: entry["rows"] for name, entry in read_manifest(tmp_path)["files"].items()} == {
        "quarantine.parquet": 0,
        "train-00000.parquet": 4,
        "train-00001.parquet": 4,
        "train-00002.parquet": 2,
        "unseen-00000.parquet": 3,
        "validation-00000.parquet": 4,
    }
    reader = PairReader(tmp_path, "train")
    assert [reader.key(index) for index in (0, 4, 9)] == [f"scene-train-00000{index}" for index in (0, 4, 9)]


def test_the_same_settings_give_the_same_bytes_and_another_seed_different_ones(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_pairs(scenes_config(), seed, tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert files_of(tmp_path / "a")["train-00000.parquet"] != files_of(tmp_path / "c")["train-00000.parquet"]


def test_shards_of_an_earlier_run_are_removed(tmp_path):
    for count in (10, 3):
        write_pairs(scenes_config(count, rows_per_shard=2), 0, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("train-*"))
    assert names == ["train-00000.parquet", "train-00001.parquet"]


def test_captions_of_a_damaged_shard_or_a_missing_split_are_rejected(tmp_path):
    write_pairs(scenes_config(3), 0, tmp_path)
    with pytest.raises(DamagedArtefact, match="has no split 'nonsense', only train, unseen, validation"):
        list(read_captions(tmp_path, "nonsense"))
    path = tmp_path / "train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in an image
    path.write_bytes(data)
    with pytest.raises(DamagedArtefact, match="train-00000.parquet is damaged"):
        list(read_captions(tmp_path, "train"))


# ---- groups, splits and settings

SKIN_TONE = "^(.*?): .*skin tone"
FILTERED = {"min_caption_words": 2, "boilerplate": ("^photo(graphed)? ",), "language": "en"}


def test_a_missing_source_is_rejected_before_anything_is_written(tmp_path):
    with pytest.raises(SourceError, match="data.path: there is no folder .*own"):
        write_pairs(folder_config(tmp_path / "own"), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_an_unknown_language_is_rejected_before_anything_is_read(tmp_path):
    config = folder_config(tmp_path / "nowhere", language="xx")
    with pytest.raises(UserError, match="data.language is 'xx'; it can be: ace, af"):
        check_source(config)


def test_captions_with_the_same_group_1_share_a_group():
    def group(caption: str) -> str:
        return group_of(Pair("key", b"", (caption,), ""), DataConfig(group_by=SKIN_TONE))

    assert group("man surfing: dark skin tone") == group("man surfing") == "man surfing"
    assert group("flag: Canada") == "flag: Canada"
    assert group_of(Pair("key", b"", ("man surfing",), ""), DataConfig()) == "key"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_depends_only_on_the_group_and_the_seed(seed):
    assert [split_of(f"group {index}", 0, 0.5)[0] for index in range(12)] == list("tvtvvvtvvttt")
    held_out = sum(split_of(str(index), seed, 0.1) == "validation" for index in range(5_000))
    assert held_out / 5_000 == pytest.approx(0.1, abs=0.02)


def test_filters_of_captions_and_near_duplicates_do_not_apply_to_scenes(tmp_path):
    counts = write_pairs(scenes_config(), 0, tmp_path / "plain")
    near = {"near_duplicates": "hash", "near_duplicate_distance": 15}
    write_pairs(scenes_config(**FILTERED, language_margin=0.0, **near), 0, tmp_path / "filters")
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "filters")
    assert not {"formats", "flags", "by_shard", "near_duplicates"} & counts.keys()
