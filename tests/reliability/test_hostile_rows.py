"""What becomes of every kind of hostile or odd input: `COVERED_D` says for each which tests hold it.

One outcome differs from the list that this project was given: a picture that takes too much memory is `out_of_memory`, not
`worker_died`; that its process lives to tell is to be welcomed. Flags and formats of pictures are counted in the manifest, and
no column of the shards: what is stored are the pixels of a still picture.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from stages import prepare_pairs
from stages._stage import Stage
from tests.pictures import details, odd_member, outcome, png, write, write_tar
from tests.test_data_stages import Notes
from tests.test_images import encoded, noise, png_header
from tests.test_pairs import files_of, scenes_config, write_folder
from tests.tiny import TEXT_LENGTH, tiny_text
from thousandwords import captions
from thousandwords.config import ConfigError, section
from thousandwords.files import read_manifest
from thousandwords.images import Refused
from thousandwords.pair_counts import FATES
from thousandwords.pairs import QUARANTINE, Config, write_pairs
from thousandwords.sources import (
    FolderSource,
    JsonLinesSource,
    ParquetSource,
    SourceError,
    TableSource,
    WebDatasetSource,
    _places,
    clean_captions,
)
from thousandwords.sources._contract import key_of

ROOT = Path(__file__).parent.parent
HERE = "test_hostile_rows"
COVERED_D = {  # row -> what comes in -> the tests that hold what becomes of it
    "D0": ("every input is counted once, of each shard too; neighbours are left alone; decoders have limits",
           ["test_every_bad_picture_is_one_row_of_the_quarantine_and_touches_no_neighbour",
            "test_what_became_of_the_inputs_is_counted_for_every_file_of_many",
            "test_hostile_inputs.test_any_number_of_workers_writes_the_same_bytes",
            "test_hostile_inputs.test_a_decoder_that_hangs_takes_its_own_picture_only",
            "test_hostile_inputs.test_a_decoder_that_swells_takes_its_own_picture_only"]),
    "D1": ("a JPEG without its half or its end",
           ["test_every_bad_picture_is_one_row_of_the_quarantine_and_touches_no_neighbour",
            "test_images.test_a_picture_cut_anywhere_is_refused_or_whole"]),
    "D2": ("a cut header, no bytes, HTML, SVG, random bytes",
           ["test_every_bad_picture_is_one_row_of_the_quarantine_and_touches_no_neighbour",
            "test_images.test_what_is_no_picture_of_ours_is_named"]),
    "D3": ("a PNG cut, flipped, or with a wrong checksum",
           ["test_every_bad_picture_is_one_row_of_the_quarantine_and_touches_no_neighbour",
            "test_images.test_a_flipped_bit_anywhere_in_the_pixels_of_a_png_is_noticed",
            "test_images.test_a_wrong_checksum_of_any_chunk_but_the_last_is_refused"]),
    "D4": ("a PNG without its end", ["test_images.test_a_png_without_its_end_chunk_is_taken"]),
    "D5": ("a flipped byte in a JPEG, without and with its sha256",
           ["test_images.test_flipped_bytes_in_the_pixels_of_a_jpeg_do_not_show_and_are_taken",
            "test_a_picture_that_is_not_what_its_source_promised_is_refused"]),
    "D6": ("a PNG that is named .jpg", ["test_hostile_inputs.test_a_picture_is_read_by_its_content_whatever_its_name",
                                        "test_formats_and_flags_are_counted_by_content"]),
    "D7": ("CMYK, YCCK", ["test_images.test_both_codings_of_cmyk_in_a_jpeg_give_the_colours_of_the_reference",
                          "test_images.test_odd_but_sound_files_have_the_right_colours"]),
    "D8": ("greys of 16 bits, 32 bits and floats",
           ["test_images.test_16_bit_greys_are_scaled_by_their_range",
            "test_images.test_12_bits_are_scaled_by_12_bits",
            "test_images.test_greys_of_32_bits_are_scaled_by_16_as_they_come",
            "test_images.test_float_pictures_are_scaled_by_the_range_they_are_in",
            "test_images.test_float_pictures_in_no_known_range_are_refused"]),
    "D9": ("alpha, and palettes with it", ["test_images.test_transparent_pixels_take_the_background_colour",
                                           "test_images.test_half_transparent_pixels_are_mixed_with_the_background",
                                           "test_images.test_transparent_palette_entries_take_the_background_colour"]),
    "D10": ("1 bit, grey", ["test_images.test_pictures_without_colour_become_grey"]),
    "D11": ("animations", ["test_images.test_an_animation_gives_its_first_frame",
                           "test_images.test_an_animation_is_flagged_and_a_still_is_not",
                           "test_formats_and_flags_are_counted_by_content"]),
    "D12": ("EXIF orientation 1 to 8, 99, broken", ["test_images.test_exif_orientation_is_applied",
                                                    "test_images.test_exif_orientation_is_applied_to_a_jpeg",
                                                    "test_images.test_broken_exif_turns_nothing_and_loses_nothing",
                                                    "test_images.test_turned_files_stand_upright"]),
    "D13": ("a bad colour profile", ["test_images.test_a_bad_colour_profile_changes_nothing",
                                     "test_images.test_a_profile_is_bad_where_its_length_signature_or_tags_are",
                                     "test_formats_and_flags_are_counted_by_content"]),
    "D14": ("12,000 x 12,000 pixels in 420 kB", ["test_hostile_inputs.test_a_bomb_is_refused_on_its_header",
                                                 "test_hostile_inputs.test_a_picture_of_the_most_pixels_allowed_fits_into_the_limits"]),
    "D15": ("more pixels yet", ["test_every_bad_picture_is_one_row_of_the_quarantine_and_touches_no_neighbour"]),
    "D16": ("no pixels", ["test_every_bad_picture_is_one_row_of_the_quarantine_and_touches_no_neighbour"]),
    "D17": ("a bomb of text; an exception that nobody listed",
            ["test_images.test_a_text_bomb_is_refused",
             "test_images.test_an_error_that_nobody_listed_still_is_a_refusal"]),
    "D18": ("too small, too long", ["test_images.test_shapes_that_the_settings_leave_out_are_refused_on_the_header"]),
    "D19": ("EPS, FITS, PSD, ICNS, PDF", ["test_images.test_what_is_no_picture_of_ours_is_named",
                                          "test_images.test_no_decoder_of_another_format_is_entered"]),
    "D20": ("a picture with an archive behind it",
            ["test_images.test_only_the_pixels_of_a_picture_with_an_archive_behind_it_are_taken"]),
    "D21": ("files that made decoders crash, hang or swell",
            ["test_images.test_every_hostile_file_is_decoded_or_refused_under_the_right_name",
             "test_hostile_inputs.test_any_number_of_workers_writes_the_same_bytes"]),
    "D22": ("a decoder that dies", ["test_hostile_inputs.test_a_decoder_that_dies_takes_its_own_picture_only",
                                    "test_workers.test_an_input_that_kills_its_worker_is_a_fault_and_its_neighbours_are_not",
                                    "test_workers.test_an_input_is_tried_twice_the_second_time_in_a_worker_of_its_own"]),
    "D23": ("too many bytes; a pipe, device, socket, folder",
            ["test_what_is_no_plain_file_is_refused_at_once_wherever_it_is_named"]),
    "D24": ("links that loop, lead out or nowhere; what may not or cannot be read",
            ["test_sources.test_what_is_no_plain_file_inside_the_folder_is_refused_without_reading_it",
             "test_a_file_that_one_may_not_read_is_an_io_error",
             "test_a_file_that_cannot_be_read_is_an_io_error"]),
    "D25": ("a file that changes or vanishes", ["test_a_file_that_changes_while_it_is_read_is_an_io_error",
                                                "test_hostile_inputs.test_a_picture_that_vanishes_is_counted"]),
    "D26": ("names of any bytes", ["test_names_of_every_kind_are_keys_of_their_own_to_the_end",
                                   "test_a_key_tells_the_name_again",
                                   "test_sources.test_file_names_of_any_bytes_get_keys_of_their_own",
                                   "test_pairs.test_names_that_are_no_text_can_be_quarantined"]),
    "D27": ("captions that are no UTF-8", ["test_sources.test_captions_are_utf8_lines_or_refused"]),
    "D28": ("no caption, no picture", ["test_sources.test_captions_are_utf8_lines_or_refused",
                                       "test_sources.test_what_lacks_its_other_half_is_named"]),
    "D29": ("captions without end", ["test_no_caption_takes_long",
                                     "test_caption_files_that_are_too_long_say_so_in_tars_too",
                                     "test_text.test_captions_that_are_too_long_are_cut_and_counted"]),
    "D30": ("odd characters in captions", ["test_sources.test_captions_are_utf8_lines_or_refused",
                                           "test_text.test_emoji_scripts_and_control_characters_come_back",
                                           "test_text.test_any_text_comes_back_lower_cased"]),
    "D31": ("the same name twice", ["test_a_sample_that_comes_twice_is_a_duplicate_and_another_of_its_name_is_refused",
                                    "test_the_first_of_a_name_wins_for_any_number_of_workers",
                                    "test_pairs.test_bad_inputs_are_counted_named_and_leave_their_neighbours_alone",
                                    "test_source_lists.test_odd_entries_are_refused_and_leave_their_neighbours_alone"]),
    "D32": ("bad rows, open quotes, lines without end",
            ["test_sources.test_bad_rows_are_refused_one_by_one",
             "test_source_lists.test_broken_lines_are_refused_one_by_one",
             "test_source_lists.test_odd_values_are_refused_with_their_row",
             "test_sources.test_a_table_that_gives_nothing_is_refused_with_the_mend",
             "test_source_lists.test_a_line_that_does_not_end_is_refused_in_little_memory",
             "test_a_line_of_two_gigabytes_takes_little_memory"]),
    "D33": ("odd members of a tar", ["test_sources.test_odd_members_are_refused_and_leave_their_neighbours_alone",
                                     "test_a_sparse_member_is_refused",
                                     "test_nothing_that_a_tar_holds_is_written_anywhere",
                                     "test_sources.test_a_header_that_would_fill_the_memory_is_refused_unread",
                                     "test_hostile_inputs.test_a_tar_of_very_many_members_is_indexed_in_little_memory"]),
    "D34": ("a tar that was cut or has a flipped bit",
            ["test_sources.test_a_tar_cut_anywhere_is_never_read_as_a_shorter_one",
             "test_sources.test_a_flipped_bit_in_any_tar_header_is_noticed",
             "test_sources.test_a_tar_that_differs_from_its_own_statistics_stops_the_run"]),
    "D35": ("archives that unpack to too much, or in one another",
            ["test_archives_are_never_unpacked",
             "test_sources.test_a_compressed_tar_is_refused_by_name",
             "test_source_lists.test_rows_that_would_unpack_to_more_than_pictures_may_are_refused_before_they_are_read"]),
    "D36": ("nothing, or too little, that is good", ["test_pairs.test_nothing_but_bad_inputs_is_never_a_success",
                                                     "test_pairs.test_too_many_bad_inputs_stop_with_the_histogram"]),
    "D37": ("damage of any kind", ["test_fuzz.test_damaged_pictures_are_refused_or_decoded_and_counted",
                                   "test_fuzz.test_thousands_of_damaged_pictures_are_refused_or_decoded_and_counted"]),
}  # fmt: skip


def test_every_row_names_tests_that_there_are():
    assert list(COVERED_D) == [f"D{number}" for number in range(38)]
    for _, names in COVERED_D.values():
        for name in names:
            file, _, test = name.rpartition(".")
            source = (ROOT / "tests" / f"{file or HERE}.py").read_text(encoding="utf-8")
            assert f"def {test}(" in source, f"tests/{file or HERE}.py has no {test}"


def config(source: str, path: Path, **settings: object) -> Config:
    return section({"source": source, "path": str(path), "image_size": 16, "validation_share": 0.3, "max_refused_share": 0.9,
                    "workers": 1, **settings}, "data", Config)


def good_samples(count: int) -> list[tuple[str, bytes | str]]:
    """Members of a tar: 0.png, 0.txt, ..."""
    pictures = {str(number): encoded(noise(seed=number)) for number in range(count)}
    return [member for name, data in pictures.items() for member in ((f"{name}.png", data), (f"{name}.txt", "text"))]


def adds_up(counts: dict) -> bool:
    return counts["n_in"] == sum(counts[fate] for fate in FATES)


def quarantined(folder: Path) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(folder / QUARANTINE).to_pylist()}


# ---- pictures


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """Pictures that are refused, and why: {name: (bytes, reason)}."""
    jpeg, whole = encoded(noise(), "JPEG"), encoded(noise())
    flipped, unchecked = bytearray(whole), bytearray(whole)
    flipped[500] ^= 4
    unchecked[-13] ^= 4    # the checksum of IDAT
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "x" * 100_000_000, zip=True)
    return {
        "half.jpg": (jpeg[:len(jpeg) // 2], "truncated"), "tail.jpg": (jpeg[:-2], "truncated"),
        "head.jpg": (jpeg[:20], "not_an_image"), "empty.png": (b"", "empty_file"),
        "html.jpg": (b"<html><body>404</body></html>", "not_an_image"),
        "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        "random.png": (np.random.default_rng(0).bytes(1000), "not_an_image"),
        "half.png": (whole[:len(whole) // 2], "truncated"), "flipped.png": (bytes(flipped), "corrupt_data"),
        "unchecked.png": (bytes(unchecked), "corrupt_data"),
        "large.png": (png_header(12_000, 12_000), "too_many_pixels"),
        "larger.png": (png_header(20_000, 20_000), "too_many_pixels"),
        "largest.png": (png_header(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        "none.png": (png_header(0, 0), "not_an_image"), "text.png": (encoded(noise(), pnginfo=notes), "corrupt_data"),
        "dot.png": (encoded(noise(1, 1)), "too_small"), "line.png": (encoded(noise(1, 5000)), "too_small"),
        "small.png": (encoded(noise(31, 40)), "too_small"), "long.png": (encoded(noise(40, 130)), "bad_aspect"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "bad_format"),
        "fits.png": (b"SIMPLE  =                    T" + b" " * 100, "bad_format"),
        "psd.png": (b"8BPS\0\1" + bytes(100), "bad_format"), "icns.png": (b"icns" + bytes(100), "bad_format"),
        "pdf.png": (b"%PDF-1.7\n" + bytes(100), "bad_format"),
        "odd.tif": (encoded(Image.fromarray(np.full((32, 32), -1, np.float32)), "TIFF"), "bad_mode"),
    }  # fmt: skip


def test_every_bad_picture_is_one_row_of_the_quarantine_and_touches_no_neighbour(tmp_path):
    own = write_folder(tmp_path / "own")
    write_pairs(config("folder", own), 0, tmp_path / "without")
    bad = bad_pictures()
    for name, (data, _) in bad.items():    # "00…": among the good ones
        write(own, {f"00{name}": data, f"00{Path(name).stem}.txt": "text"})
    counts = write_pairs(config("folder", own), 0, tmp_path / "with")

    assert adds_up(counts) and (counts["n_in"], counts["n_ok"]) == (12 + len(bad), 12)
    rows = quarantined(tmp_path / "with")
    assert {name[2:]: row["reason"] for name, row in rows.items()} == {name: reason for name, (_, reason) in bad.items()}
    for name, (data, _) in bad.items():
        row = rows[f"00{name}"]
        assert (row["source"], row["sha256"], row["byte_size"]) == (f"own/00{name}", hashlib.sha256(data).hexdigest(), len(data))
        assert 0 < len(row["detail"]) <= 500
    beside = files_of(tmp_path / "with")
    shards = {name: data for name, data in files_of(tmp_path / "without").items() if name.startswith(("train", "validation"))}
    assert shards and all(beside[name] == data for name, data in shards.items())


def test_formats_and_flags_are_counted_by_content(tmp_path, capsys):
    """A PNG named .jpg, animations of three formats, bad profiles of two, and one picture that is both."""
    own, frames = write_folder(tmp_path / "own"), [Image.fromarray(noise(seed=seed)) for seed in range(5)]
    bad = {"icc_profile": b"no profile at all"}
    odd = {
        "named.jpg": encoded(noise(seed=20)), "still.webp": encoded(noise(seed=21), "WEBP"),
        **{f"moving.{kind}": encoded(frames[number], kind, save_all=True, append_images=frames[3:])
           for number, kind in enumerate(("gif", "webp", "png"))},
        "both.webp": encoded(frames[3], "WEBP", save_all=True, append_images=frames[:1], **bad),
        "profile.jpg": encoded(noise(seed=22), "JPEG", **bad), "copy.jpg": encoded(noise(seed=22), "JPEG", **bad),
    }  # fmt: skip
    for name, data in odd.items():
        write(own / name.replace(".", "-"), {name: data, f"{Path(name).stem}.txt": "text"})
    run = Stage("prepare_pairs", {"seed": 0, "data": {"source": "folder", "path": str(own), "image_size": 16,
                                                      "workers": 1, "validation_share": 0.3}}, Notes())  # fmt: skip
    prepare_pairs.prepare_pairs(tmp_path / "pairs", run)

    counts = read_manifest(tmp_path / "pairs")["facts"]["counts"]
    assert counts["formats"] == {"PNG": 14, "WEBP": 3, "GIF": 1, "JPEG": 1} and counts["n_duplicate"] == 1
    assert counts["flags"] == {"animated": 4, "bad_icc_profile": 2}
    assert run.tracker.figures["flags/animated"] == 4
    assert capsys.readouterr().err.endswith(
        "prepare_pairs: of the 19 pictures that were taken 4 are animated (the first frame counts), "
        "2 have a bad colour profile (it is ignored)\n")


def test_scenes_have_neither_formats_nor_flags_nor_shards(tmp_path):
    counts = write_pairs(scenes_config(), 0, tmp_path)
    assert sorted(counts) == ["n_duplicate", "n_filtered", "n_in", "n_ok", "n_quarantined", "reasons", "splits"]


# ---- counts by shard


def two_tars(folder: Path) -> Path:
    """Six good samples in one tar; in the other one that is good, one cut, one without a caption, one small, and a copy."""
    odd = {"a": encoded(noise(seed=9)), "b": encoded(noise())[:300], "c": encoded(noise(8, 8)), "d": encoded(noise(seed=0))}
    folder.mkdir()
    write_tar(folder / "0.tar", good_samples(6))
    write_tar(folder / "1.tar", [*((f"{name}.png", data) for name, data in odd.items()), ("e.png", png()),
                                 *((f"{name}.txt", "text") for name in odd)])
    return folder


EXPECTED = {
    "0.tar": {"n_in": 6, "n_ok": 6, "n_quarantined": 0, "n_duplicate": 0, "n_filtered": 0},
    "1.tar": {"n_in": 5, "n_ok": 1, "n_quarantined": 2, "n_duplicate": 1, "n_filtered": 1},
}


def test_what_became_of_the_inputs_is_counted_for_every_file_of_many(tmp_path):
    tars = two_tars(tmp_path / "tars")
    counts = write_pairs(config("webdataset", tars), 0, tmp_path / "pairs")
    assert counts["by_shard"] == EXPECTED == read_manifest(tmp_path / "pairs")["facts"]["counts"]["by_shard"]
    assert all(adds_up(shard) for shard in counts["by_shard"].values()) and adds_up(counts)

    rows = [(encoded(noise(seed=20 + number)), f"row {number}") for number in range(6)] + [(b"cut", "x"), (png(9), None)]
    (tmp_path / "rows").mkdir()
    for name, some in (("a.parquet", rows[:4]), ("b.parquet", rows[4:])):
        columns = dict(zip(("image", "caption"), map(list, zip(*some, strict=True)), strict=True))
        pq.write_table(pa.table(columns), tmp_path / "rows" / name)
    sources = [{"source": "webdataset", "path": str(tars)}, {"source": "parquet", "path": str(tmp_path / "rows")},
               {"source": "folder", "path": str(write_folder(tmp_path / "own"))}]
    counts = write_pairs(config("mixture", tmp_path, sources=sources), 0, tmp_path / "mixture")
    assert list(counts["by_shard"]) == ["0/0.tar", "0/1.tar", "1/a.parquet", "1/b.parquet"]
    assert counts["by_shard"]["0/1.tar"] == EXPECTED["1.tar"]
    assert counts["by_shard"]["1/b.parquet"] == {"n_in": 4, "n_ok": 2, "n_quarantined": 2, "n_duplicate": 0, "n_filtered": 0}
    assert adds_up(counts) and sum(shard["n_in"] for shard in counts["by_shard"].values()) == counts["n_in"] - 12


# ---- what a source says of its bytes


def promised(kind: str, folder: Path, pictures: dict[str, bytes], digests: dict[str, object]):
    """A source of these pictures that says what each should hash to."""
    write(folder, pictures)
    rows = [{"image": name, "caption": name, "sum": digests[name]} for name in pictures]
    if kind == "csv":
        lines = [",".join(str(row[key] or "") for key in ("image", "caption", "sum")) for row in rows]
        return TableSource(write(folder, {"t.csv": "\n".join(["image,caption,sum", *lines])}) / "t.csv", sha256_column="sum")
    if kind == "jsonl":
        lines = "\n".join(map(json.dumps, rows))
        return JsonLinesSource(write(folder, {"t.jsonl": lines}) / "t.jsonl", sha256_column="sum")
    if kind == "webdataset":
        parts = [(f"{Path(name).stem}.{suffix}", data) for name, row in zip(pictures, rows, strict=True)
                 for suffix, data in (("jpg", pictures[name]), ("json", json.dumps(row)))]
        return WebDatasetSource(write_tar(folder / "t.tar", parts), sha256_column="sum")
    if kind == "parquet of bytes":
        rows = [{**row, "image": pictures[row["image"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return ParquetSource(folder / "t.parquet", sha256_column="sum")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet of paths", "parquet of bytes", "webdataset"])
def test_a_picture_that_is_not_what_its_source_promised_is_refused(tmp_path, kind):
    sound = encoded(noise(), "JPEG")
    flipped = sound[:-200] + bytes([sound[-200] ^ 4]) + sound[-199:]
    digest = hashlib.sha256(sound).hexdigest()
    pictures = {"a.jpg": sound, "b.jpg": flipped, "c.jpg": flipped, "d.jpg": sound, "e.jpg": sound}
    digests = {"a.jpg": digest, "b.jpg": digest, "c.jpg": None, "d.jpg": digest.upper(), "e.jpg": "sha256 unknown"}
    found = list(promised(kind, tmp_path, pictures, digests))

    assert [pair.problem and pair.problem.reason for pair in found] == [None, "hash_mismatch", None, None, "bad_row"]
    assert found[1].image == flipped    # for the quarantine to say what it was
    assert str(found[1].problem) == (
        f"hash_mismatch: its sha256 should be {digest}, found {hashlib.sha256(flipped).hexdigest()}")


def test_rows_that_promise_different_bytes_of_one_picture_refuse_it(tmp_path):
    digest = hashlib.sha256(png()).hexdigest()
    lines = ["image,caption,sha256", f"a.png,one,{digest}", f"a.png,two,{'0' * 64}", f"b.png,one,{digest}", "b.png,two,"]
    write(tmp_path, {"a.png": png(), "b.png": png(), "t.csv": "\n".join(lines)})
    assert outcome(TableSource(tmp_path / "t.csv", sha256_column="sha256")) == {"a.png": "hash_mismatch", "b.png": ("one", "two")}


def test_a_column_of_digests_is_checked_before_anything_is_read(tmp_path):
    own = write(tmp_path, {"a.png": png(), "t.csv": "image,caption\na.png,a", "t.jsonl": '{"image": "a.png", "caption": "a"}'})
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["a"], "sum": [7]}), own / "t.parquet")
    write_tar(own / "t.tar", [("a.png", png()), ("a.json", '{"caption": "a"}')])
    for source, message in (
        (TableSource(own / "t.csv", sha256_column="sum"), "no column 'sum', only 'image', 'caption'. Set data.sha256_column"),
        (JsonLinesSource(own / "t.jsonl", sha256_column="sum"), "no line with the key 'sum'.*Set data.sha256_column"),
        (ParquetSource(own / "t.parquet", sha256_column="sum"), "column 'sum' holds int64, not text.*Set data.sha256_column"),
        (WebDatasetSource(own / "t.tar", sha256_column="sum"), "hold no .json with 'sum'. Set data.sha256_column to the key"),
    ):
        with pytest.raises(SourceError, match=message):
            source.check()
    with pytest.raises(ConfigError, match="data.sha256_column is given, but folder knows no such thing. Take it away; it is for "
                                          "csv, webdataset, jsonl, parquet"):
        config("folder", own, sha256_column="sum")


# ---- files that are none


def make_large(path: Path) -> None:
    path.touch()
    os.truncate(path, _places.MAX_BYTES + 1)    # a hole: it takes no room on the disk


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)    # the path of a socket may have 107 bytes
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(path.name)
    os.chdir(here)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))    # /dev/zero, which has no end
    except PermissionError:
        pytest.skip("only root may make devices")


@pytest.mark.parametrize(("make", "reason"), [
    (make_large, "too_many_bytes"), (os.mkfifo, "not_regular"), (make_socket, "not_regular"), (make_device, "not_regular"),
    (os.mkdir, "not_regular"),
])
def test_what_is_no_plain_file_is_refused_at_once_wherever_it_is_named(tmp_path, make, reason):
    write(tmp_path, {"a.png": png(), "a.txt": "a", "odd.txt": "text", "t.csv": "image,caption\na.png,a\nodd.png,text",
                     "l.jsonl": '{"image": "a.png", "caption": "a"}\n{"image": "odd.png", "caption": "text"}'})
    make(tmp_path / "odd.png")
    for source in (FolderSource(tmp_path), TableSource(tmp_path / "t.csv"), JsonLinesSource(tmp_path / "l.jsonl")):
        started = time.monotonic()
        assert outcome(source) == {"a.png": ("a",), "odd.png": reason}
        assert time.monotonic() - started < 1


def test_captions_that_are_no_plain_file_refuse_their_pair_at_once(tmp_path):
    write(tmp_path, {name: png() for name in ("a.png", "b.png", "c.png")})
    os.mkfifo(tmp_path / "a.txt")
    make_socket(tmp_path / "b.txt")
    write(tmp_path, {"c.txt": "see"})
    assert outcome(FolderSource(tmp_path)) == {"a.png": "not_regular", "b.png": "not_regular", "c.png": ("see",)}


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """What root may read all the same, nobody else may."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_one_may_not_read_is_an_io_error(tmp_path, monkeypatch):
    own = write(tmp_path / "own", {"a.png": png(), "a.txt": "a", "b.png": png(1), "b.txt": "b", "c.png": png(2), "c.txt": "c",
                                   "closed/d.png": png(3), "closed/d.txt": "d"})
    for name in ("b.png", "c.txt", "closed"):
        (own / name).chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)    # nobody may look into the folders above
    with as_nobody():
        assert outcome(FolderSource("own")) == {"a.png": ("a",), "b.png": "io_error", "c.png": "io_error", "closed": "io_error"}
        assert details(FolderSource("own"))["b.png"] == "io_error: b.png: Permission denied"
    (own / "closed").chmod(0o700)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file here fails by itself")
def test_a_file_that_cannot_be_read_is_an_io_error(tmp_path):
    """The first page of a process's memory: a plain file, which opens, and gives EIO as a failing disk does."""
    write(tmp_path, {"t.csv": "image,caption\nmem,text\n"})
    source = TableSource(tmp_path / "t.csv", image_folder=f"/proc/{os.getpid()}")
    assert details(source) == {"mem": "io_error: mem: Input/output error"}


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")
    os.utime(path, (1, 1))    # clocks of file systems are coarse: the length must tell it alone


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


CHANGES = {"grow": grow, "shrink": lambda path: os.truncate(path, 100), "become a pipe": become_a_pipe,
           "become a link": become_a_link, "vanish": Path.unlink, "rewrite": lambda path: path.write_bytes(png(1)),
           "swell": lambda path: os.truncate(path, _places.MAX_BYTES + 1)}
CHANGED = "io_error: a.png changed while it was read"


@pytest.mark.parametrize(("moment", "change", "problem"), [
    ("_at_once", "become a pipe", CHANGED), ("_at_once", "swell", CHANGED),
    ("_at_once", "become a link", "io_error: a.png: Too many levels of symbolic links"),
    ("_at_once", "vanish", "missing_pair: there is no a.png"),
    ("_read_up_to", "grow", CHANGED), ("_read_up_to", "shrink", CHANGED), ("_read_up_to", "rewrite", CHANGED),
])
def test_a_file_that_changes_while_it_is_read_is_an_io_error(tmp_path, monkeypatch, moment, change, problem):
    """`moment` is the step of reading before which it changes; the others came and went by then."""
    write(tmp_path, {"a.png": png(), "a.txt": "a"})
    os.utime(tmp_path / "a.png", (1, 1))
    step = getattr(_places, moment)

    def meanwhile(*arguments):
        if (tmp_path / "a.png").exists() and os.lstat(tmp_path / "a.png").st_mtime == 1 and "a.txt" not in str(arguments[0]):
            CHANGES[change](tmp_path / "a.png")
        return step(*arguments)

    monkeypatch.setattr(_places, moment, meanwhile)
    assert details(FolderSource(tmp_path)) == {"a.png": problem}


def test_a_file_that_vanishes_while_it_is_read_is_read_whole_and_hashed_as_read(tmp_path, monkeypatch):
    own = write_folder(tmp_path / "own")
    write(own, {"a.png": encoded(noise())[:500], "a.txt": "a"})
    read, number = _places._read_up_to, (own / "a.png").stat().st_ino

    def meanwhile(file, count):
        if os.fstat(file.fileno()).st_ino == number:
            (own / "a.png").unlink()
        return read(file, count)

    monkeypatch.setattr(_places, "_read_up_to", meanwhile)
    counts = write_pairs(config("folder", own), 0, tmp_path / "pairs")
    assert (counts["n_ok"], counts["reasons"]) == (12, {"truncated": 1})
    assert quarantined(tmp_path / "pairs")["a.png"]["sha256"] == hashlib.sha256(encoded(noise())[:500]).hexdigest()


# ---- names


def name_of(key: str) -> bytes:
    """The name that a key was made of."""
    raw, at = bytearray(), 0
    while at < len(key):
        if key[at] != "\\":
            raw += key[at].encode()
            at += 1
        elif key[at + 1] == "\\":
            raw += b"\\"
            at += 2
        else:    # \xe9
            raw.append(int(key[at + 2:at + 4], 16))
            at += 4
    return bytes(raw)


@given(st.binary(min_size=1) | st.text(min_size=1).filter(lambda name: name.isprintable()).map(str.encode))
def test_a_key_tells_the_name_again(name):
    assert name_of(key_of(os.fsdecode(name))) == name


def test_names_of_every_kind_are_keys_of_their_own_to_the_end(tmp_path):
    names = [b"caf\xe9", "caf\u00e9".encode(), "cafe\u0301".encode(), b"caf\\xe9", b"new\nline", b"x" * 251, b"Case", b"case",
             b"a..b", b"~..", b"\xff\xfe", b"a\tb", "\u202egnp".encode(), b"--", b"%00", b"*", b"'\"`$(x)"]
    own = write_folder(tmp_path / "own")
    for number, name in enumerate(names):
        for suffix, data in ((b".png", encoded(noise(seed=100 + number))), (b".txt", b"text")):
            with open(os.path.join(os.fsencode(own), name + suffix), "wb") as file:
                file.write(data)
    counts = write_pairs(config("folder", own), 0, tmp_path / "pairs")

    assert counts["n_in"] == counts["n_ok"] == 12 + len(names)
    keys = [row["key"] for path in (tmp_path / "pairs").glob("[tv]*.parquet") for row in pq.read_table(path).to_pylist()]
    assert sorted(map(name_of, keys)) == sorted([*(f"{number:03d}.png".encode() for number in range(12)),
                                                 *(name + b".png" for name in names)])


# ---- captions


LONG = {
    "1 MB": "x" * 1_000_000, "10,000 tokens": "a cat " * 10_000, "50,000 combining marks": "e" + "\u0301" * 50_000,
    "50,000 marks out of order": "e" + "\u0345\u0301\u0316\u0334" * 12_500, "a million lines": "a\n" * 500_000,
    "as many marks as are taken": "e" + "\u0345" * 1000 + "\u0301" * 1000 + "\u0316" * 1000 + "\u0334" * 999,
    "as many tokens as are taken": "\U0001f469" * 4000,
}  # fmt: skip


def seconds_of(work, *arguments: object) -> float:
    """The best of three: others are at work on this machine."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        work(*arguments)
        seconds.append(time.process_time() - started)
    return min(seconds)


def taken_in(caption: str) -> list[str]:
    """What stays of a caption file."""
    try:
        return list(captions.sift(clean_captions(caption.split("\n")), captions.Rules(min_words=1, boilerplate=("^photo",)))[0])
    except Refused as problem:
        assert problem.reason == "caption_too_long"
        return []


@pytest.mark.parametrize("kind", LONG)
def test_no_caption_takes_long(kind):
    kept = taken_in(LONG[kind])
    assert bool(kept) == (len(LONG[kind].partition("\n")[0]) <= 4000)
    assert seconds_of(taken_in, LONG[kind]) < 0.1
    words = tiny_text()
    assert seconds_of(words.encode, kept) < 0.1 and words.encode(kept).shape == (len(kept), TEXT_LENGTH)


def test_caption_files_that_are_too_long_say_so_in_tars_too(tmp_path):
    long = "x" * 1_048_576
    write_tar(tmp_path / "t.tar", [("a.png", png()), ("a.txt", long), ("b.png", png()), ("b.json", json.dumps({"caption": long})),
                                   ("c.png", png()), ("c.json", json.dumps({"caption": long[:900_000]})), ("d.png", png()),
                                   ("d.txt", "see")])
    assert outcome(WebDatasetSource(tmp_path)) == {"t/a": "caption_too_long", "t/b": "caption_too_long",
                                                   "t/c": "caption_too_long", "t/d": ("see",)}


# ---- the same name twice


def repeating_tar(path: Path) -> Path:
    """Samples that come again: whole, by one half, with another picture, with another caption, and a third time."""
    one, two = encoded(noise(seed=1)), encoded(noise(seed=2))
    return write_tar(path, [
        ("a.png", one), ("a.txt", "a"), ("b.png", two), ("c.png", encoded(noise(seed=3))), *good_samples(8),
        ("b.txt", "b"), ("c.txt", "c"), ("a.png", one), ("a.txt", "a"), ("b.png", two), ("b.png", one),
        ("c.txt", "sea"), ("a.txt", "a"), ("c.png", encoded(noise(seed=3)))])


def test_a_sample_that_comes_twice_is_a_duplicate_and_another_of_its_name_is_refused(tmp_path):
    counts = write_pairs(config("webdataset", repeating_tar(tmp_path / "t.tar")), 0, tmp_path / "pairs")
    assert adds_up(counts)
    assert {name: counts[name] for name in ("n_in", "n_ok", "n_duplicate", "reasons")} == {
        "n_in": 16, "n_ok": 11, "n_duplicate": 3, "reasons": {"duplicate_id": 2}}
    refused = quarantined(tmp_path / "pairs").values()
    assert {row["detail"] for row in refused} == {"the tar holds 'b.png' a second time, with other bytes",
                                                  "the tar holds 'c.txt' a second time, with other bytes"}


def test_the_first_of_a_name_wins_for_any_number_of_workers(tmp_path):
    tar = repeating_tar(tmp_path / "t.tar")
    for workers in (1, 3):
        write_pairs(config("webdataset", tar, workers=workers), 0, tmp_path / str(workers))
    one = files_of(tmp_path / "1")
    assert files_of(tmp_path / "3") == one
    rows = {row["key"]: row for path in (tmp_path / "1").glob("[tv]*.parquet") for row in pq.read_table(path).to_pylist()}
    assert [rows[f"t/{name}"]["captions"] for name in "abc"] == [["a"], ["b"], ["c"]]


# ---- lists and archives

MEASURE = """
import resource, sys
from thousandwords.sources import JsonLinesSource, SourceError, TableSource
source = {"jsonl": JsonLinesSource, "csv": TableSource}[sys.argv[1]](sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(*[f"{pair.key}={pair.problem and pair.problem.reason}" for pair in source], sep=",", end=" ")
except SourceError as error:
    print(str(error).partition(", ")[2].replace(" ", "_"), end=" ")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [
    ("jsonl", "a.png=None,line 2=too_many_bytes"), ("csv", "line_3:_over_1,000,000_bytes._Is_it_a_table?")])
def test_a_line_of_two_gigabytes_takes_little_memory(tmp_path, kind, said):
    start = '{"image": "a.png", "caption": "ok"}\n' if kind == "jsonl" else "image,caption\na.png,ok\n"
    write(tmp_path, {"a.png": png(), f"l.{kind}": start})
    os.truncate(tmp_path / f"l.{kind}", 2_000_000_000)
    command = [sys.executable, "-c", MEASURE, kind, str(tmp_path / f"l.{kind}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found, _, kilobytes = done.strip().rpartition(" ")
    assert found == said and int(kilobytes) < 256_000


def test_a_sparse_member_is_refused(tmp_path):
    info = odd_member("hole.png", tarfile.GNUTYPE_SPARSE)
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000001000\0"    # 512 bytes at 0
    header[483:495] = b"77777777777\0"    # of 8 GB in all
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    good = write_tar(tmp_path / "good.tar", [("a.png", png()), ("a.txt", "a"), ("hole.txt", "hole")]).read_bytes()
    (tmp_path / "t.tar").write_bytes(bytes(header) + bytes(512) + good)
    (tmp_path / "good.tar").unlink()
    assert outcome(WebDatasetSource(tmp_path)) == {"t/hole": "not_regular", "t/a": ("a",)}


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    """{path: (mode, size)} of all that there is."""
    return {str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_size) for path in folder.rglob("*")
            if path.is_symlink() or not path.is_dir()}


def test_nothing_that_a_tar_holds_is_written_anywhere(tmp_path, monkeypatch):
    work = tmp_path / "a/b/c"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(work))
    write_tar(work / "t.tar", [
        *good_samples(8), ("../up.png", png()), ("../up.txt", "up"),
        (f"{tmp_path}/abs.png", png()), (f"{tmp_path}/abs.txt", "abs"),
        odd_member("out", tarfile.SYMTYPE, str(tmp_path)), ("out/through.png", png()), ("out/through.txt", "through"),
        odd_member("hard.png", tarfile.LNKTYPE, "../../secret"), ("hard.txt", "hard"), odd_member("pipe.png", tarfile.FIFOTYPE)])
    before = everything_below(tmp_path)
    counts = write_pairs(config("webdataset", work / "t.tar"), 0, work / "pairs")

    assert adds_up(counts) and counts["reasons"] == {"unsafe_path": 2, "not_regular": 2}
    assert counts["n_ok"] == 9    # out/through is a name, no place
    after = everything_below(tmp_path)
    assert {path for path in after.keys() - before.keys() if not path.startswith("a/b/c/pairs/")} == set()
    assert before.items() <= after.items()


def test_archives_are_never_unpacked(tmp_path):
    """Neither beside pictures, nor in their place, nor in one another."""
    inner, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(40_000_000))
    assert len(packed.getvalue()) < 42_000
    own = write_folder(tmp_path / "own")
    write(own, {"bomb.zip": packed.getvalue(), "bomb.png": packed.getvalue(), "bomb.txt": "x", "inner.tar.gz": inner.getvalue(),
                "gz.png": inner.getvalue(), "gz.txt": "x"})
    counts = write_pairs(config("folder", own), 0, tmp_path / "folder")
    assert (counts["n_in"], counts["n_ok"], counts["reasons"]) == (14, 12, {"not_an_image": 2})

    archives = {"a.zip": packed, "nested.tar": inner, "nested.zip": packed, "b.json.gz": inner}
    members = [(name, data.getvalue()) for name, data in archives.items()]
    write_tar(tmp_path / "t.tar", [("a.png", png()), ("a.txt", "a"), *members])
    assert outcome(WebDatasetSource(tmp_path / "t.tar")) == {"t/a": ("a",)}
