"""Near duplicates as pairs are prepared: who stays, what is listed and counted, and that no setting beside the point matters."""
from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.test_twins import jpeg, lighter, photo, resized
from thousandwords import pairs
from thousandwords.config import ConfigError, section
from thousandwords.duplicates import DUPLICATES, EXAMPLES, Nearness, NearTwins, limits_by_chance
from thousandwords.files import read_manifest
from thousandwords.images import encode_png
from thousandwords.pair_settings import SceneCounts
from thousandwords.pair_shards import PairReader, splits
from thousandwords.pairs import Config, write_pairs
from thousandwords.twins import Look

COUNT = 30


def add(folder: Path, key: str, picture: np.ndarray | bytes, caption: str) -> None:
    data = picture if isinstance(picture, bytes) else encode_png(picture)
    (folder / f"{key}.{'png' if data[1:4] == b'PNG' else 'jpg'}").write_bytes(data)
    (folder / f"{key}.txt").write_text(caption)


@pytest.fixture
def own(tmp_path) -> Path:
    """30 pictures called 000 to 029, which come first."""
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(COUNT):
        add(folder, f"{number:03d}", photo(number), f"picture {number}")
    return folder


def config(folder: Path, **more) -> Config:
    return Config(source="folder", path=str(folder), image_size=64, validation_share=0.3, **{"near_duplicates": "hash", **more})


def prepared(settings: Config, out: Path) -> tuple[dict, dict[str, str], list[dict]]:
    """counts, {key: split} of what stays, rows of the table"""
    counts = write_pairs(settings, 0, out)
    readers = {split: PairReader(out, split) for split in splits(out)}
    stays = {reader.key(row): split for split, reader in readers.items() for row in range(len(reader))}
    return counts, stays, pq.read_table(out / DUPLICATES).to_pylist()


def test_copies_new_encodings_sizes_and_light_are_dropped_and_the_first_stays(own, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(photo(4)).save(buffer, "JPEG", quality=80)
    changed = [("copy", photo(1)), ("smaller", resized(photo(2), 48)), ("lighter", lighter(photo(3), 1.08)),
               ("encoded", buffer.getvalue()), ("again", jpeg(photo(5), 60))]    # fmt: skip
    for number, (name, picture) in enumerate(changed, start=1):
        add(own, f"z-{name}", picture, f"another caption, {number}")

    counts, stays, rows = prepared(config(own), tmp_path / "pairs")

    assert sorted(stays) == [f"{number:03d}.png" for number in range(COUNT)]
    dropped = [row for row in rows if row["is_dropped"]]
    assert {(row["key"].split(".")[0], row["twin"]) for row in dropped} == {
        ("z-copy", "001.png"), ("z-smaller", "002.png"), ("z-lighter", "003.png"), ("z-encoded", "004.png"),
        ("z-again", "005.png")}    # fmt: skip
    copy = next(row for row in dropped if row["key"] == "z-copy.png")
    assert (copy["distance"], copy["colour"], copy["captions"]) == (0, 0, ["another caption, 1"])
    assert (counts["n_in"], counts["n_ok"], counts["n_duplicate"]) == (35, 30, 5)
    assert sum(counts["near_duplicates"]["by_distance"].values()) == 5


def test_mirrored_recoloured_and_cropped_pictures_stay(own, tmp_path):
    add(own, "z-mirrored", photo(1)[:, ::-1].copy(), "mirrored")
    add(own, "z-recoloured", photo(2)[:, :, ::-1].copy(), "recoloured")
    add(own, "z-cropped", resized(photo(3)[12:-12, 12:-12], 64), "cropped")
    counts, stays, _ = prepared(config(own), tmp_path / "pairs")
    assert {"z-mirrored.png", "z-recoloured.png", "z-cropped.png"} <= set(stays) and counts["n_duplicate"] == 0


def test_no_twin_is_left_across_the_split_whoever_comes_first(own, tmp_path):
    for number in range(COUNT):
        add(own, f"z{number:03d}", lighter(photo(number), 1.05), f"a twin, {number}")

    counts, stays, rows = prepared(config(own), tmp_path / "pairs")

    assert sorted(stays) == [f"{number:03d}.png" for number in range(COUNT)] and set(stays.values()) == {"train", "validation"}
    torn = [row for row in rows if row["is_dropped"] and row["split"] != row["twin_split"]]
    assert counts["near_duplicates"]["across_splits"] == len(torn) > 3
    assert {row["twin_split"] for row in torn} == {"train", "validation"}
    assert all(stays[row["twin"]] == row["twin_split"] for row in rows)


def test_what_stays_keeps_the_split_that_it_has_without(own, tmp_path):
    for number in range(8):
        add(own, f"z{number:03d}", lighter(photo(number), 1.05), f"a twin, {number}")
    _, stays, _ = prepared(config(own), tmp_path / "pairs")
    write_pairs(config(own, near_duplicates="none"), 0, tmp_path / "all")
    everything = {PairReader(tmp_path / "all", split).key(row): split for split in splits(tmp_path / "all")
                  for row in range(len(PairReader(tmp_path / "all", split)))}    # fmt: skip
    assert len(everything) == 38 and stays == {key: everything[key] for key in stays}


@pytest.mark.parametrize("change", [{"rows_per_shard": 3}, {"keep": "whole"}])
def test_who_stays_does_not_hang_on_shards_or_on_what_they_keep(own, tmp_path, change):
    for number in range(8):
        add(own, f"z{number:03d}", lighter(photo(number), 1.05), f"a twin, {number}")
    _, first, rows = prepared(config(own), tmp_path / "first")
    _, again, same = prepared(config(own, **change), tmp_path / "again")
    assert first == again and rows == same
    assert (tmp_path / "first" / DUPLICATES).read_bytes() == (tmp_path / "again" / DUPLICATES).read_bytes()


def test_the_look_is_taken_where_a_pair_is_prepared_so_that_workers_can(own):
    """All that is not a pure function of one input is `NearTwins`, fed in the order of the source."""
    settings = config(own)
    raw = list(pairs.open_source(settings))
    backwards = [pairs.prepare(one, settings) for one in reversed(raw)][::-1]
    assert backwards == [pairs.prepare(one, settings) for one in raw] and all(pair.look for pair in backwards)
    off = dataclasses.replace(settings, near_duplicates="none")
    assert pairs.prepare(raw[0], off).look is None


def test_a_chain_of_small_changes_is_no_family():
    """The third is near the second, which is gone; from the first it is too far."""
    known = NearTwins(Nearness(distance=2, colour=255))
    found = [known.has(pairs.Pair(str(value), b"", ("",), "", look=Look(value, bytes(192))), "train")
             for value in (0b0, 0b11, 0b1111)]    # fmt: skip
    assert found == [False, True, False]
    assert [(row["key"], row["twin"], row["distance"], row["is_dropped"]) for row in known.rows] == [
        ("3", "0", 2, True), ("15", "0", 4, False)]    # fmt: skip


def test_a_twin_is_not_hidden_by_a_nearer_picture_in_other_colours():
    known = NearTwins(Nearness(distance=2, colour=24))
    looks = [Look(0b0, bytes([200] * 192)), Look(0b11, bytes(192)), Look(0b0, bytes(192))]
    found = [known.has(pairs.Pair(str(row), b"", ("",), "", look=look), "train") for row, look in enumerate(looks)]
    assert found == [False, False, True] and known.rows[-1]["twin"] == "1"


def test_a_few_pictures_of_each_distance_are_kept_to_look_at():
    known = NearTwins(Nearness(distance=1, colour=255))
    for row, value in enumerate([0, *[0b1] * 9, *(0b11 << bit for bit in range(2, 24, 2))]):
        known.has(pairs.Pair(str(row), b"png", ("",), "", look=Look(value, bytes(192))), "train")
    dropped, near = ([row for row in known.rows if row["is_dropped"] is fate] for fate in (True, False))
    assert len(dropped) == 9 and [row["image"] for row in dropped] == [b"png"] * EXAMPLES + [None] * 5
    assert len([row for row in near if row["distance"] == 2]) == EXAMPLES and not any(row["image"] for row in near)


def test_the_data_can_pick_the_distance(own, tmp_path):
    for number in range(COUNT, 150):    # among few pictures a few twins would be many pairs
        add(own, f"{number:03d}", photo(number), f"picture {number}")
    for number in range(3):
        add(own, f"z{number:03d}", jpeg(photo(number), 70), f"a twin, {number}")
    counts, stays, _ = prepared(config(own, near_duplicate_distance=None), tmp_path / "pairs")
    assert counts["n_duplicate"] == 3 and sorted(stays) == [f"{number:03d}.png" for number in range(150)]
    assert 3 <= counts["near_duplicates"]["distance"] <= 15


def test_where_all_look_alike_equal_looks_alone_are_twins():
    alike = [Look(0b1 << bit % 3, bytes([bit] * 192)) for bit in range(60)]
    assert limits_by_chance(iter(alike), 24) == Nearness(0, 0)
    assert limits_by_chance(iter(alike[:1]), 24) == limits_by_chance(iter([]), 24) == Nearness(0, 0)
    others = [Look(int(value), bytes(192)) for value in np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)]
    assert limits_by_chance(others, 24).colour == 24 and 8 <= limits_by_chance(others, 24).distance <= 15


def test_the_manifest_speaks_of_near_duplicates_only_where_they_are_dropped(own, tmp_path):
    facts = {}
    for kind in ("none", "hash"):
        write_pairs(config(own, near_duplicates=kind), 0, tmp_path / kind)
        facts[kind] = read_manifest(tmp_path / kind)["facts"]
    settings = {"near_duplicates": "hash", "near_duplicate_distance": 4, "near_duplicate_colour": 24}
    assert facts["hash"]["settings"] == {**facts["none"]["settings"], **settings}
    assert facts["hash"]["counts"].keys() - facts["none"]["counts"].keys() == {"near_duplicates"}
    assert not (tmp_path / "none" / DUPLICATES).exists()
    assert DUPLICATES in read_manifest(tmp_path / "hash")["files"]


def test_a_table_of_an_earlier_run_does_not_stay(own, tmp_path):
    write_pairs(config(own), 0, tmp_path / "pairs")
    write_pairs(config(own, near_duplicates="none"), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs" / DUPLICATES).exists()


def test_scenes_are_never_searched(tmp_path):
    counts = SceneCounts(6, 3, 2)
    for name, more in (("plain", {}), ("hash", {"near_duplicates": "hash", "near_duplicate_distance": 15})):
        write_pairs(Config(scenes=counts, **more), 0, tmp_path / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "hash").iterdir()}    # fmt: skip


@pytest.mark.parametrize(("block", "message"), [
    ({"near_duplicates": "phash"}, "data.near_duplicates is 'phash'; it can be: none, hash"),
    ({"near_duplicates": False}, "data.near_duplicates is False; it can be: none, hash"),
    ({"near_duplicate_distance": 16}, "data.near_duplicate_distance is 16; it lies between 0 and 15"),
    ({"near_duplicate_distance": -1}, "data.near_duplicate_distance is -1; it lies between 0 and 15"),
    ({"near_duplicate_colour": 256}, "data.near_duplicate_colour is 256; it lies between 0 and 255"),
])    # fmt: skip
def test_settings_out_of_range_are_refused_by_name(block, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        section(block, "data", Config)


def test_a_reader_finds_rows_by_key(own, tmp_path):
    write_pairs(config(own), 0, tmp_path / "pairs")
    reader = PairReader(tmp_path / "pairs", "train")
    last = len(reader) - 1
    assert reader.find([reader.key(last), reader.key(0), "nobody"]) == {reader.key(0): 0, reader.key(last): last}
