"""Pair shards: what goes in comes out or is counted, splits hold, files are repeatable and any damage is noticed."""
from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandwords import pair_shards
from thousandwords.config import ConfigError, section
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, read_manifest
from thousandwords.images import area_resize, decode_png, encode_png, fit_square
from thousandwords.pair_counts import BadData
from thousandwords.pair_settings import SceneCounts
from thousandwords.pair_shards import PairReader, read_captions, splits
from thousandwords.pairs import (
    QUARANTINE,
    Config,
    Pair,
    check_source,
    group_of,
    split_of,
    write_pairs,
)
from thousandwords.sources import SourceError

SHARED = Path(__file__).parents[2] / "shared/data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
SKIN_TONE = "^(.*?): .*skin tone"


def pixels(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_folder(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:03d}.png").write_bytes(encode_png(pixels(index)))
        (folder / f"{index:03d}.txt").write_text(f"picture {index}\nnumber {index}")
    return folder


def folder_config(folder: Path, **settings) -> Config:
    return Config(source="folder", path=str(folder), image_size=16, **{"validation_share": 0.3, **settings})


def scenes_config(count: int = 10, **settings) -> Config:
    return Config(scenes=SceneCounts(count, 4, 3), **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- writing and reading


def test_a_pair_comes_back_as_it_went_in(tmp_path):
    write_pairs(folder_config(write_folder(tmp_path / "own")), 0, tmp_path / "pairs")
    rows = {}
    for split in ("train", "validation"):
        reader = PairReader(tmp_path / "pairs", split)
        assert reader.image_size == 16 and len(reader.fingerprint) == 64
        pictures = reader.images(range(len(reader)))
        assert pictures.shape == (len(reader), 16, 16, 3) and pictures.dtype == np.uint8
        rows |= {reader.key(i): (reader.captions(i), pictures[i]) for i in range(len(reader))}
    assert list(sorted(rows)) == [f"{index:03d}.png" for index in range(12)]
    captions, picture = rows["007.png"]
    assert captions == ["picture 7", "number 7"]
    assert (picture == fit_square(pixels(7), 16)).all()


def test_pictures_are_decoded_in_the_order_asked_for(tmp_path):
    write_pairs(scenes_config(), 0, tmp_path)
    reader = PairReader(tmp_path, "train")
    assert (reader.images([7, 0, 7])[[1, 0]] == reader.images([0, 7])).all()
    assert reader.images([]).shape == (0, 64, 64, 3)


@pytest.mark.parametrize(("kept", "unpacked"), [(2**29, 3), (0, 6)])
def test_few_squares_are_unpacked_once_many_each_time_and_all_come_out_the_same(tmp_path, monkeypatch, kept, unpacked):
    write_pairs(scenes_config(), 0, tmp_path)
    reader, seen = PairReader(tmp_path, "train"), []
    monkeypatch.setattr(pair_shards, "MOST_UNPACKED", kept)
    monkeypatch.setattr(pair_shards, "decode_png", lambda data: seen.append(data) or decode_png(data))

    first, second = reader.images([5, 2, 7]), reader.images([2, 7, 5])

    assert len(seen) == unpacked and (first[[1, 2, 0]] == second).all()
    second[:] = 0  # what is handed out is the caller's own
    assert (reader.images([5, 2, 7]) == first).all()


def test_the_rows_have_the_columns_that_the_house_knows(tmp_path):
    write_pairs(scenes_config(), 0, tmp_path)
    row = pq.read_table(tmp_path / "unseen-00000.parquet").to_pylist()[0]
    assert sorted(row) == ["captions", "image", "key", "provenance", "split"]
    assert (row["key"], row["split"], row["provenance"]) == ("scene-unseen-000000", "unseen", "scenes, seed 0")
    assert row["image"].startswith(b"\x89PNG") and len(row["captions"]) == 1


def test_scenes_have_three_splits(tmp_path):
    counts = write_pairs(scenes_config(), 0, tmp_path)
    assert counts["splits"] == {"train": 10, "validation": 4, "unseen": 3} and counts["n_in"] == counts["n_ok"] == 17
    assert splits(tmp_path) == ["train", "validation", "unseen"]
    assert check_source(scenes_config()) == 17


def test_shards_hold_the_rows_asked_for_and_the_manifest_counts_them(tmp_path):
    write_pairs(scenes_config(10, rows_per_shard=4), 0, tmp_path)
    assert {name: entry["rows"] for name, entry in read_manifest(tmp_path)["files"].items()} == {
        "quarantine.parquet": 0, "train-00000.parquet": 4, "train-00001.parquet": 4, "train-00002.parquet": 2,
        "unseen-00000.parquet": 3, "validation-00000.parquet": 4}
    reader = PairReader(tmp_path, "train")
    assert [reader.key(index) for index in (0, 4, 9)] == [f"scene-train-00000{index}" for index in (0, 4, 9)]


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_pairs(scenes_config(), seed, tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert files_of(tmp_path / "a")["train-00000.parquet"] != files_of(tmp_path / "c")["train-00000.parquet"]


def test_what_an_earlier_run_left_is_removed(tmp_path):
    write_pairs(scenes_config(10, rows_per_shard=2), 0, tmp_path)
    write_pairs(scenes_config(3, rows_per_shard=2), 0, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("train-*")) == ["train-00000.parquet", "train-00001.parquet"]


def test_progress_sees_every_input_and_how_many_there_will_be(tmp_path):
    seen = []

    def progress(items, total):
        seen.append(total)
        for item in items:
            seen.append(item[0])
            yield item

    write_pairs(folder_config(write_folder(tmp_path / "own")), 0, tmp_path / "pairs", progress)
    assert seen[0] == 12 and len(seen) == 13


# ---- squares and whole pictures


def readers(folder: Path) -> dict[str, tuple[PairReader, int]]:
    """Where each pair of a folder is found: {key: (reader, row)}."""
    found = {}
    for split in splits(folder):
        reader = PairReader(folder, split)
        found |= {reader.key(row): (reader, row) for row in range(len(reader))}
    return found


def test_whole_pictures_are_kept_at_their_own_shape_and_still_give_squares(tmp_path):
    own = write_folder(tmp_path / "own")
    write_pairs(folder_config(own, keep="whole"), 0, tmp_path / "whole")
    write_pairs(folder_config(own), 0, tmp_path / "squares")
    squares = readers(tmp_path / "squares")

    for key, (reader, row) in readers(tmp_path / "whole").items():
        assert (reader.pictures([row])[0] == pixels(int(key[:3]))).all()    # (40, 48, 3), as it was given
        square_reader, square_row = squares[key]
        assert (reader.images([row]) == square_reader.images([square_row])).all()


def test_whole_pictures_are_shrunk_to_the_side_asked_for_and_never_enlarged(tmp_path):
    own = write_folder(tmp_path / "own", 8)
    (own / "small.png").write_bytes(encode_png(pixels(1, 33, 32)))
    (own / "small.txt").write_text("small")
    write_pairs(folder_config(own, keep="whole", keep_side=35), 0, tmp_path / "pairs")
    stored = {key: reader.pictures([row])[0] for key, (reader, row) in readers(tmp_path / "pairs").items()}

    assert (stored["small.png"] == pixels(1, 33, 32)).all()
    assert stored["007.png"].shape == (35, 42, 3)
    assert (stored["007.png"] == area_resize(pixels(7), 35, 42)).all()


def test_pictures_that_were_stored_as_squares_are_given_as_squares(tmp_path):
    write_pairs(folder_config(write_folder(tmp_path / "own")), 0, tmp_path / "pairs")
    reader = PairReader(tmp_path / "pairs", "train")
    assert [picture.shape for picture in reader.pictures([0, 2])] == [(16, 16, 3)] * 2
    assert (np.stack(reader.pictures([0, 2])) == reader.images([0, 2])).all()


def test_the_manifest_of_squares_is_what_it_was_before_whole_pictures_could_be_kept(tmp_path):
    write_pairs(scenes_config(), 0, tmp_path / "squares")
    write_pairs(scenes_config(keep="whole", keep_side=96), 0, tmp_path / "whole")
    squares, whole = (read_manifest(tmp_path / name)["facts"]["settings"] for name in ("squares", "whole"))
    assert {**squares, "keep": "whole", "keep_side": 96} == whole and "keep" not in squares


# ---- counts and quarantine


def test_bad_inputs_are_counted_named_and_leave_their_neighbours_alone(tmp_path):
    own = write_folder(tmp_path / "own", 20)
    config = folder_config(own, max_refused_share=0.5)
    write_pairs(config, 0, tmp_path / "clean")
    sound = encode_png(pixels(0))
    bad = {"cut": sound[:500], "html": b"<html>", "empty": b"", "lone": sound, "blank": sound, "latin": sound,
           "tiny": encode_png(pixels(0, 20, 20)), "long": encode_png(pixels(0, 40, 200)), "again": sound}
    for name, data in bad.items():
        (own / f"{name}.png").write_bytes(data)
        (own / f"{name}.txt").write_bytes({"blank": b" ", "latin": b"caf\xe9", "again": b"picture 0\nnumber 0"}.get(name, b"x"))
    (own / "lone.txt").unlink()
    counts = write_pairs(config, 0, tmp_path / "mixed")
    reasons = counts.pop("reasons")
    assert counts == {"n_in": 29, "n_ok": 20, "n_quarantined": 6, "n_duplicate": 1, "n_filtered": 2, "formats": {"PNG": 20},
                      "splits": read_manifest(tmp_path / "clean")["facts"]["counts"]["splits"]}
    assert reasons == {"truncated": 1, "not_an_image": 1, "empty_file": 1, "missing_pair": 1, "caption_empty": 1,
                       "caption_encoding": 1, "too_small": 1, "bad_aspect": 1}
    clean, mixed = files_of(tmp_path / "clean"), files_of(tmp_path / "mixed")
    assert all(mixed[name] == data for name, data in clean.items() if re.match("train|validation", name))


def test_the_quarantine_says_what_was_refused_and_why(tmp_path):
    own = write_folder(tmp_path / "own")
    (own / "cut.png").write_bytes(encode_png(pixels(0))[:500])
    (own / "cut.txt").write_text("a cut")
    (own / "text only.txt").write_text("no picture")
    write_pairs(folder_config(own), 0, tmp_path / "pairs")
    cut, alone = pq.read_table(tmp_path / "pairs" / QUARANTINE).to_pylist()
    assert cut["detail"].startswith("OSError: image file is truncated")
    assert {**cut, "sha256": len(cut["sha256"]), "detail": ""} == {
        "id": "cut.png", "source": "own/cut.png", "sha256": 64, "byte_size": 500, "reason": "truncated", "detail": ""}
    assert alone == {"id": "text only.txt", "source": "own/text only.txt", "sha256": None, "byte_size": None,
                     "reason": "missing_pair", "detail": "there is no picture beside text only.txt"}


def test_names_that_are_no_text_can_be_quarantined(tmp_path):
    own = write_folder(tmp_path / "own")
    for name in (b"caf\xe9.png", b"bar\xe9.txt"):
        Path(os.fsdecode(os.fsencode(own) + b"/" + name)).write_bytes(b"x")
    write_pairs(folder_config(own), 0, tmp_path / "pairs")
    rows = pq.read_table(tmp_path / "pairs" / QUARANTINE).to_pylist()
    assert [row["id"] for row in rows] == ["bar\\xe9.txt", "caf\\xe9.png"]


def test_too_many_bad_inputs_stop_with_the_histogram(tmp_path):
    own = write_folder(tmp_path / "own", 6)
    for index in range(4):
        (own / f"bad{index}.png").write_bytes(b"<html>" if index else b"")
        (own / f"bad{index}.txt").write_text("x")
    with pytest.raises(BadData, match=r"4 of the 10 inputs of .*own were refused \(40%\): 3 not_an_image \(bad1.png: the bytes "
                                      r"begin with b'<html>'\), 1 empty_file .*raise data.max_refused_share \(now 0.2\)"):
        write_pairs(folder_config(own), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs/manifest.json").exists()


def test_nothing_but_bad_inputs_is_never_a_success(tmp_path):
    own = write_folder(tmp_path / "own", 2)
    for path in own.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(BadData, match=r"2 of the 2 inputs .* were refused \(100%\)"):
        write_pairs(folder_config(own, max_refused_share=1.0), 0, tmp_path / "pairs")


def test_an_empty_split_is_refused_with_the_mend(tmp_path):
    own = write_folder(tmp_path / "own", 3)
    with pytest.raises(BadData, match=r"None of the 3 pairs of .*own fell to the validation split. Add pairs, or change "
                                      r"data.validation_share \(now 0.01\)"):
        write_pairs(folder_config(own, validation_share=0.01), 0, tmp_path / "pairs")


def test_a_missing_source_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SourceError, match="data.path: there is no folder .*own"):
        write_pairs(folder_config(tmp_path / "own"), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


# ---- caption filters

FILTERED = {"min_caption_words": 2, "boilerplate": ("^photo(graphed)? ",), "language": "en"}
CAPTIONS = {"a kite on a hill": None, "the blue house by the sea": None, "kite": "caption_too_short",
            "Photo taken 2019-01-01": "boilerplate", "ein roter drachen fliegt über den hügel": "wrong_language"}


def add_pair(folder: Path, name: str, lines: list[str], picture: int = 0) -> None:
    (folder / f"{name}.png").write_bytes(encode_png(pixels(picture)))
    (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def test_each_caption_is_filtered_by_itself_and_a_pair_only_with_its_last(tmp_path):
    own = write_folder(tmp_path / "own")
    add_pair(own, "some", ["kite", "a kite on a hill", "Photographed on 3 may 1921", "fog", "the blue house by the sea"])
    add_pair(own, "none", ["ein roter drachen fliegt über den hügel", "kite"], 1)
    counts = write_pairs(folder_config(own, **FILTERED), 0, tmp_path / "pairs")

    reader, row = readers(tmp_path / "pairs")["some.png"]
    assert reader.captions(row) == ["a kite on a hill", "the blue house by the sea"]
    refused = pq.read_table(tmp_path / "pairs" / QUARANTINE).to_pylist()
    assert [(line["id"], line["reason"]) for line in refused] == [("none.png", "wrong_language")]
    assert re.fullmatch(r"de 0\.\d\d, en 0\.00: 'ein roter drachen fliegt über den hügel'", refused[0]["detail"])
    assert counts.pop("splits").keys() == {"train", "validation"}
    assert counts == {"n_in": 14, "n_ok": 13, "n_quarantined": 0, "n_duplicate": 0, "n_filtered": 1,
                      "formats": {"PNG": 13}, "reasons": {"wrong_language": 1},
                      "captions_dropped": {"caption_too_short": 2, "boilerplate": 1}}
    assert read_manifest(tmp_path / "pairs")["facts"]["counts"]["captions_dropped"] == counts["captions_dropped"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(100, 102), st.lists(st.sampled_from(sorted(CAPTIONS)), min_size=1, unique=True)),
                max_size=9))
def test_whatever_the_captions_every_input_is_counted_once(drawn):
    expected, seen, dropped = Counter(ok=12), set(), Counter()
    for picture, lines in drawn:
        stay = tuple(line for line in lines if CAPTIONS[line] is None)
        outcome = CAPTIONS[lines[0]] if not stay else "duplicate" if (picture, stay) in seen else "ok"
        expected[outcome] += 1
        dropped.update(CAPTIONS[line] for line in lines if CAPTIONS[line] and outcome == "ok")
        seen.add((picture, stay))

    with tempfile.TemporaryDirectory() as folder:
        own = write_folder(Path(folder) / "own")
        for number, (picture, lines) in enumerate(drawn):
            add_pair(own, f"z{number}", lines, picture)
        counts = write_pairs(folder_config(own, **FILTERED), 0, Path(folder) / "pairs")

    assert counts["n_in"] == 12 + len(drawn)
    assert (counts["n_ok"], counts["n_duplicate"], counts["n_quarantined"]) == (expected["ok"], expected["duplicate"], 0)
    assert counts["n_in"] == counts["n_ok"] + counts["n_duplicate"] + counts["n_filtered"]
    assert counts["reasons"] == {reason: expected[reason] for reason in CAPTIONS.values() if expected[reason]}
    assert counts["captions_dropped"] == dropped


@pytest.mark.parametrize("group_by", [None, "^(.*?):"])
def test_a_filter_moves_no_pair_that_it_leaves(tmp_path, group_by):
    own = write_folder(tmp_path / "own", 6)
    for index in range(30):
        first = f"family {index % 10}: {'fog' if index % 3 else 'a long line of cars'}"
        add_pair(own, f"z{index:02d}", [first, f"a second caption, {index}"], 50 + index)
    where = {}
    for name, rules in (("all", {}), ("sifted", {"min_caption_words": 4})):
        write_pairs(folder_config(own, group_by=group_by, **rules, max_refused_share=0.5), 0, tmp_path / name)
        where[name] = {key: (split, reader.pictures([row])[0].tobytes()) for split in splits(tmp_path / name)
                       for key, (reader, row) in rows_of(tmp_path / name, split).items()}
    assert where["sifted"] == {key: place for key, place in where["all"].items() if key.startswith("z")}
    assert len(where["sifted"]) == 30


def rows_of(folder: Path, split: str) -> dict[str, tuple[PairReader, int]]:
    reader = PairReader(folder, split)
    return {reader.key(row): (reader, row) for row in range(len(reader))}


def test_captions_are_looked_at_before_the_picture_is_decoded(tmp_path):
    own = write_folder(tmp_path / "own")
    add_pair(own, "cut", ["kite"])
    (own / "cut.png").write_bytes(encode_png(pixels(0))[:500])
    counts = write_pairs(folder_config(own, min_caption_words=2), 0, tmp_path / "pairs")
    assert (counts["n_filtered"], counts["n_quarantined"], counts["reasons"]) == (1, 0, {"caption_too_short": 1})


def test_what_caption_filters_leave_out_is_no_sign_of_bad_data(tmp_path):
    own = write_folder(tmp_path / "own", 10)
    for index in range(30):
        add_pair(own, f"short{index}", ["kite"], index)
    counts = write_pairs(folder_config(own, min_caption_words=2), 0, tmp_path / "pairs")
    assert (counts["n_ok"], counts["n_filtered"]) == (10, 30)

    for index in range(4):    # 4 of 10, not 4 of 40
        (own / f"{index:03d}.png").write_bytes(b"<html>")
    with pytest.raises(BadData, match=r"4 of the 10 inputs of .*own were refused \(40%\): 4 not_an_image \(000.png: the bytes "
                                      r"begin with b'<html>'\). Mend them, or raise data.max_refused_share \(now 0.2\)"):
        write_pairs(folder_config(own, min_caption_words=2), 0, tmp_path / "again")


def test_filters_that_leave_nothing_stop_with_the_settings_to_change(tmp_path):
    with pytest.raises(BadData, match=r"The caption filters leave none of the 12 inputs of .*own: 12 caption_too_short "
                                      r"\(000.png: 2 of 9 words: 'picture 0'\). Change data.min_caption_words, "
                                      r"data.boilerplate or data.language"):
        write_pairs(folder_config(write_folder(tmp_path / "own"), min_caption_words=9), 0, tmp_path / "pairs")
    assert not (tmp_path / "pairs/manifest.json").exists()


def test_scenes_are_not_filtered_and_the_manifest_is_the_old_one(tmp_path):
    write_pairs(scenes_config(), 0, tmp_path / "plain")
    write_pairs(scenes_config(**FILTERED, language_margin=0.0), 0, tmp_path / "filters")
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "filters")


def test_the_manifest_speaks_of_caption_filters_only_where_there_are_some(tmp_path):
    own = write_folder(tmp_path / "own")
    facts = []
    for name, rules in (("plain", {}), ("sifted", {"min_caption_words": 2})):
        write_pairs(folder_config(own, **rules), 0, tmp_path / name)
        facts.append(read_manifest(tmp_path / name)["facts"])
    plain, sifted = facts
    assert sifted["counts"] == {**plain["counts"], "captions_dropped": {}} and "captions_dropped" not in plain["counts"]
    assert sifted["settings"] == {**plain["settings"], "min_caption_words": 2, "boilerplate": [], "language": None,
                                  "language_margin": 0.2}
    assert (tmp_path / "plain/train-00000.parquet").read_bytes() == (tmp_path / "sifted/train-00000.parquet").read_bytes()


def test_a_language_that_nobody_knows_is_refused_before_anything_is_read(tmp_path):
    config = folder_config(tmp_path / "nowhere", language="xx")
    with pytest.raises(UserError, match="data.language is 'xx'; it can be: ace, af"):
        check_source(config)


# ---- splits


def test_siblings_share_a_group():
    def group(caption: str) -> str:
        return group_of(Pair("key", b"", (caption,), ""), SKIN_TONE)
    assert group("man surfing: dark skin tone") == group("man surfing: light skin tone") == group("man surfing")
    assert group("flag: Canada") == "flag: Canada"
    assert group_of(Pair("key", b"", ("man surfing",), ""), None) == "key"


def test_a_split_depends_on_the_group_and_the_seed_alone():
    assert [split_of(f"group {index}", 0, 0.5)[0] for index in range(12)] == list("tvtvvvtvvttt")
    shares = [sum(split_of(str(index), seed, 0.1) == "validation" for index in range(5_000)) / 5_000 for seed in (0, 1)]
    assert shares == pytest.approx([0.1, 0.1], abs=0.02)


# ---- captions alone


def test_captions_are_read_without_the_pictures_in_the_order_of_the_rows(tmp_path):
    write_pairs(folder_config(write_folder(tmp_path / "own"), rows_per_shard=3), 0, tmp_path / "pairs")
    for split in ("train", "validation"):
        reader = PairReader(tmp_path / "pairs", split)
        assert list(read_captions(tmp_path / "pairs", split)) == [reader.captions(row) for row in range(len(reader))]


def test_captions_of_a_damaged_shard_or_a_split_that_is_not_there_are_refused(tmp_path):
    write_pairs(scenes_config(3), 0, tmp_path)
    with pytest.raises(DamagedArtefact, match="has no split 'nonsense', only train, unseen, validation"):
        list(read_captions(tmp_path, "nonsense"))
    path = tmp_path / "train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1    # in a picture
    path.write_bytes(data)
    with pytest.raises(DamagedArtefact, match="train-00000.parquet is damaged"):
        list(read_captions(tmp_path, "train"))


# ---- damage


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    write_pairs(scenes_config(3), 0, tmp_path)
    rng = np.random.default_rng(0)
    for path in (tmp_path / name for name in rng.choice(sorted(files_of(tmp_path)), 60)):
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[rng.integers(len(sound))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        for _ in range(2):    # nothing is cached that would let it through the second time
            with pytest.raises(DamagedArtefact, match="Run: dvc repro prepare_pairs"):
                PairReader(tmp_path, "train")
        path.write_bytes(sound)
    assert len(PairReader(tmp_path, "train")) == 3


def test_every_page_carries_a_checksum_of_its_own(tmp_path):
    write_pairs(scenes_config(3), 0, tmp_path)
    path = tmp_path / "train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="(?i)crc|checksum|corrupt"):
        pq.read_table(path, page_checksum_verification=True)


def test_an_absent_split_is_refused_with_those_that_are_there(tmp_path):
    write_pairs(folder_config(write_folder(tmp_path / "own")), 0, tmp_path / "pairs")
    with pytest.raises(DamagedArtefact, match="has no split 'unseen', only train, validation"):
        PairReader(tmp_path / "pairs", "unseen")


# ---- settings


@pytest.mark.parametrize(("block", "message"), [
    ({"source": "folders"}, "data.source is 'folders'; it can be: scenes, folder, csv, webdataset"),
    ({"image_size": 4}, "data.image_size is 4; it needs to be 8 or more"),
    ({"min_side": 0}, "data.min_side is 0; it needs to be 1 or more"),
    ({"max_aspect": 0.5}, "data.max_aspect is 0.5; it needs to be 1 or more"),
    ({"keep": "all"}, "data.keep is 'all'; it can be: square, whole"),
    ({"keep_side": 96}, "data.keep_side is 96, but data.keep is square, of image_size. Set data.keep: whole"),
    ({"keep": "whole", "keep_side": 63}, "data.keep_side is 63; it needs to be data.image_size (64) or more"),
    ({"rows_per_shard": 0}, "data.rows_per_shard is 0; it needs to be 1 or more"),
    ({"workers": -1}, "data.workers is -1; it needs to be 0 or more"),
    ({"path": ""}, "data.path is empty"),
    ({"caption_column": ""}, "data.caption_column is empty"),
    ({"validation_share": 0.0}, "data.validation_share is 0.0; it lies between 0 and 1"),
    ({"max_refused_share": 2.0}, "data.max_refused_share is 2.0; it lies between 0 and 1"),
    ({"background": [0, 0, 256]}, "data.background is (0, 0, 256); it is red, green, blue from 0 to 255"),
    ({"delimiter": ", "}, "data.delimiter is ', '; it is one character"),
    ({"group_by": "("}, "data.group_by is '(', no regular expression"),
    ({"group_by": "skin"}, "data.group_by is 'skin'; it needs a group in ()"),
    ({"min_caption_words": -1}, "data.min_caption_words is -1; it needs to be 0 (off) or more"),
    ({"boilerplate": "photo"}, "data.boilerplate should be a list, found 'photo'"),
    ({"boilerplate": ["photo", "("]}, "data.boilerplate[1] is '(', no regular expression: missing )"),
    ({"boilerplate": ["a{99999999999}"]}, "data.boilerplate[0] is 'a{99999999999}', no regular expression"),
    ({"boilerplate": ["photo|"]}, "data.boilerplate[0] is 'photo|'; it is found where nothing is, so it would drop"),
    ({"language": "English"}, "data.language is 'English'; it is a code of two or three letters, like en"),
    ({"language": False}, "data.language should be text, found False"),
    ({"language_margin": 1.0}, "data.language_margin is 1.0; it lies between 0 and 1"),
    ({"scenes": {"validation_count": 0}}, "data.scenes.validation_count is 0; it needs 1 or more"),
    ({"scenes": {"cuont": 3}}, "data.scenes has no key 'cuont'. Did you mean 'count'?"),
])
def test_settings_are_checked_at_birth(block, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        section(block, "data", Config)


# ---- real data


@needs_shared_data
def test_emoji_siblings_are_never_torn_apart(tmp_path):
    config = Config(source="webdataset", path=str(SHARED / "emoji/emoji-000001.tar"), image_size=32, group_by=SKIN_TONE,
                    validation_share=0.1)
    counts = write_pairs(config, 0, tmp_path)
    assert counts["n_in"] == counts["n_ok"] == 1000 and 50 <= counts["splits"]["validation"] <= 150
    groups = [{reader.captions(row)[0].split(":")[0] for row in range(len(reader)) if "skin tone" in reader.captions(row)[0]}
              for reader in (PairReader(tmp_path, split) for split in splits(tmp_path))]
    assert not groups[0] & groups[1]


@needs_shared_data
def test_photographs_become_pairs(tmp_path):
    config = Config(source="csv", path=str(SHARED / "photos/fsa-color/captions.tsv"), image_size=32)
    counts = write_pairs(config, 0, tmp_path)
    assert counts["n_in"] == 1615 and counts["n_ok"] + counts["n_duplicate"] == 1615


@needs_shared_data
def test_pictures_four_times_as_wide_as_high_are_left_out_by_name(tmp_path):
    config = Config(source="webdataset", path=str(SHARED / "nlvr/nlvr-000000.tar"))
    with pytest.raises(BadData, match=r"1000 bad_aspect \(nlvr-000000/000000: 400 x 100 pixels; max_aspect is 3\)"):
        write_pairs(config, 0, tmp_path)
