"""JSON lines, COCO captions and Parquet: each row comes once, in order, as a pair or with the reason why not."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.images import by_reason, details, outcome, png, write
from thousandwords.data import image_decoding
from thousandwords.ingest.sources import CocoSource, CsvSource, JsonLinesSource, ParquetSource, coco
from thousandwords.ingest.sources.base import SourceError

# ---- JSON lines


def test_lines_of_one_image_are_its_captions(tmp_path):
    lines = '\ufeff{"image": "p/a.png", "caption": "a cat"}\r\n\n{"image": "p//a.png", "caption": "a tom"}\n'
    lines += '{"caption": ["a bee", " two bees "], "image": "./b.png", "more": 1}'
    write(tmp_path, {"p/a.png": png(1), "b.png": png(2), "list.jsonl": lines})
    source = JsonLinesSource(tmp_path / "list.jsonl")
    assert outcome(source) == {"p/a.png": ("a cat", "a tom"), "b.png": ("a bee", "two bees")}
    assert [(pair.image, pair.provenance) for pair in source] == [
        (png(1), "list.jsonl/p/a.png"),
        (png(2), "list.jsonl/b.png"),
    ]


def test_keys_and_the_folder_of_the_images_are_settings(tmp_path):
    write(tmp_path, {"images/a.png": png(), "lists/l.jsonl": '{"file_name": "a.png", "text": "one"}'})
    settings = {"image_column": "file_name", "caption_column": "text", "image_folder": "../images"}
    assert outcome(JsonLinesSource(tmp_path / "lists/l.jsonl", **settings)) == {"a.png": ("one",)}


def test_broken_lines_are_rejected_one_by_one(tmp_path):
    write(tmp_path / "outside", {"x.png": png()})
    own = write(tmp_path / "own", {name: png() for name in ("a.png", "b.png", "c.png", "d.png")})
    (own / "away.png").symlink_to(tmp_path / "outside/x.png")
    lines = [
        b'{"image": "a.png", "caption": "ok"}',
        b'{"image": "b.png", "cap',
        b'["a.png", "text"]',
        b'{"image": 7, "caption": "x"}',
        b'{"image": "b.png", "caption": 7}',
        b'{"image": "b.png", "caption": "\xff"}',
        b'{"image": "b.png", "caption": null}',
        b'{"image": "\\u0000", "caption": "x"}',
        b'{"image": "\\ud800.png", "caption": "x"}',
        b"[" * 100_000,
        b'{"image": "' + b"x" * 1_500_000 + b'"}',
        b'{"image": "c.png", "caption": "\\ud800"}',
        b'{"image": "../outside/x.png", "caption": "x"}',
        b'{"image": "/etc/hostname", "caption": "x"}',
        b'{"image": "away.png", "caption": "x"}',
        b'{"image": "https://host/x.png", "caption": "x"}',
        b'{"image": "gone.png", "caption": "x"}',
        b'{"image": ".", "caption": "x"}',
        b'{"image": "d.png", "caption": "last"}',
    ]
    (own / "l.jsonl").write_bytes(b"\n".join(lines))

    source = JsonLinesSource(own / "l.jsonl")
    accepted, rejected = by_reason(outcome(source))
    assert accepted == {"a.png": ("ok",), "d.png": ("last",)}
    assert rejected == {
        "bad_row": ["line 2", "line 3", "line 5", "line 6", "line 10"],
        "missing_pair": ["7", "line 8", "line 9", "gone.png"],
        "caption_empty": ["b.png"],
        "too_many_bytes": ["line 11"],
        "caption_encoding": ["c.png"],
        "unsafe_path": ["../outside/x.png", "/etc/hostname", "away.png", "line 16"],
        "not_regular": ["."],
    }
    reasons = details(source)
    assert reasons["line 2"].startswith("bad_row: not a JSON object: Invalid control character at")
    assert reasons["line 3"] == "bad_row: not a JSON object: it is list, not an object"
    assert reasons["line 5"] == "bad_row: 'caption' is neither a text nor a list of texts"
    assert reasons["line 11"] == "too_many_bytes: a line over 1,000,000 bytes"
    assert reasons["../outside/x.png"] == (
        f"unsafe_path: x.png leads out of own, to {tmp_path}/outside; to read it, add that folder or one above it to "
        "data.link_roots"
    )
    assert reasons["line 16"] == (
        "unsafe_path: key 'image' has the URL https://host/x.png; URLs in a list are not fetched. Download it first"
    )


@pytest.mark.parametrize(
    ("kind", "message"), [("jsonl", "a line over 1,000,000 bytes"), ("csv", "line 3: over 1,000,000 bytes")]
)
def test_a_line_without_an_end_is_rejected_in_little_memory(tmp_path, kind, message):
    """A valid line, then 100 million zero bytes without a line end; 2 billion take the same 5 MB, but longer."""
    start = '{"image": "a.png", "caption": "ok"}\n' if kind == "jsonl" else "image,caption\na.png,ok\n"
    write(tmp_path, {"a.png": png(), f"l.{kind}": start})
    os.truncate(tmp_path / f"l.{kind}", 100_000_000)
    source = (JsonLinesSource if kind == "jsonl" else CsvSource)(tmp_path / f"l.{kind}")

    tracemalloc.start()
    if kind == "jsonl":
        reasons = details(source)["line 2"]
    else:
        reasons = str(pytest.raises(SourceError, list, source).value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in reasons and peak < 8_000_000


# ---- COCO


def write_coco(folder: Path, images: list, annotations: list, **more: object) -> Path:
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, **more}
    write(folder, {"captions.json": json.dumps(content)})
    return folder / "captions.json"


def annotation(identity: object, caption: object) -> dict:
    return {"id": 1, "image_id": identity, "caption": caption}


def test_the_captions_of_an_image_are_collected_into_one_pair(tmp_path):
    write(tmp_path, {"val2017/000.jpg": png(0), "val2017/001.jpg": png(1)})
    path = write_coco(
        tmp_path / "annotations",
        [{"id": 7, "file_name": "000.jpg"}, {"id": 5, "file_name": "001.jpg"}],
        [annotation(5, "a bee"), annotation(7, "a cat"), annotation(5, "two bees "), annotation(5, "a bee")],
    )
    source = CocoSource(path, image_folder="../val2017")
    assert outcome(source) == {"000.jpg": ("a cat",), "001.jpg": ("a bee", "two bees")}
    assert [pair.image for pair in source] == [png(0), png(1)]
    assert [pair.provenance for pair in source] == ["captions.json/000.jpg", "captions.json/001.jpg"]


def test_bad_entries_are_rejected_and_do_not_affect_their_neighbors(tmp_path):
    write(tmp_path / "outside", {"x.png": png()})
    own = write(tmp_path / "own", {"a.png": png(), "lone.png": png(), "blank.png": png()})
    (own / "away.png").symlink_to(tmp_path / "outside/x.png")
    names = ["a.png", "lone.png", "blank.png", "gone.png", "../outside/x.png", "away.png", "/etc/hostname"]
    names += ["http://host/x.png", None]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    images += [{"id": 0, "file_name": "again.png"}, {"id": 20, "file_name": "a.png"}]
    images += [{"file_name": "b.png"}, "c.png", {"id": [1]}]
    annotations = [annotation(number, "text") for number in range(9) if number not in (1, 2)]
    annotations += [annotation(2, " "), annotation(99, "one"), annotation(99, "two")]
    annotations += [annotation(0, 7), annotation(True, "x"), "text", {"image_id": 0}]

    source = CocoSource(write_coco(own, images, annotations))
    accepted, rejected = by_reason(outcome(source))
    assert accepted == {"a.png": ("text",)}
    assert rejected == {
        "missing_pair": ["lone.png", "gone.png", "images[8]", "image_id 99"],
        "caption_empty": ["blank.png"],
        "unsafe_path": ["../outside/x.png", "away.png", "/etc/hostname", "images[7]"],
        "duplicate_id": ["images[9]", "images[10]"],
        "bad_row": [f"images[{n}]" for n in (11, 12, 13)] + [f"annotations[{n}]" for n in (10, 11, 12, 13)],
    }
    reasons = details(source)
    assert reasons["lone.png"] == "missing_pair: no annotation has a caption for this image"
    assert reasons["gone.png"] == "missing_pair: there is no gone.png"
    assert reasons["image_id 99"] == "missing_pair: 2 captions of image_id 99, which is not among the images"
    assert reasons["images[10]"] == "duplicate_id: images[10] repeats the file a.png under another id"
    detail = "annotations[10] is not an object with an image_id and a caption"
    assert reasons["annotations[10]"] == f"bad_row: {detail}"


def test_a_coco_file_over_the_limit_is_rejected_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "MAX_JSON", 50)
    path = write_coco(tmp_path, [], [])
    message = "captions.json has 61 bytes; the limit is 50. Convert it to JSON lines, which are read one by"
    with pytest.raises(SourceError, match=message):
        CocoSource(path).check()


# ---- Parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DAMAGED = "t.parquet is not a Parquet file, or is truncated or damaged"


def write_parquet(path: Path, columns: dict[str, pa.Array], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def hub_images(*values: dict | None) -> pa.Array:
    return pa.array(values, STRUCT)


def test_each_row_with_an_image_inside_is_a_pair(tmp_path):
    images = [hub_images({"bytes": png(number), "path": "x.png"}) for number in range(3)]
    write_parquet(tmp_path / "data/train-1.parquet", {"image": images[2], "caption": pa.array(["three"])})
    write_parquet(
        tmp_path / "data/train-0.parquet",
        {
            "id": pa.array([1, 2]),
            "caption": pa.array([["one", "uno"], ["two"]]),
            "image": pa.concat_arrays(images[:2]),
        },
    )
    write(tmp_path, {"data/README.md": "hello", "data/.train.parquet": "half"})

    source = ParquetSource(tmp_path / "data")
    assert outcome(source) == {
        "train-0/00000000": ("one", "uno"),
        "train-0/00000001": ("two",),
        "train-1/00000000": ("three",),
    }
    assert [pair.image for pair in source] == [png(0), png(1), png(2)]
    assert [pair.provenance for pair in source][1:] == [
        "train-0.parquet/00000001",
        "train-1.parquet/00000000",
    ]
    assert list(outcome(ParquetSource(f"{tmp_path}/data/train-1.parquet"))) == ["train-1/00000000"]


def test_images_of_which_none_has_a_path_or_none_has_bytes_are_read(tmp_path):
    write(tmp_path, {"a.png": png(1)})
    for image in ({"bytes": png(), "path": None}, {"bytes": None, "path": "a.png"}):
        path = write_parquet(tmp_path / "t.parquet", {"image": pa.array([image]), "caption": ["a cat"]})
        assert outcome(ParquetSource(path)) == {"t/00000000": ("a cat",)}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize(
    "text",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())],
)
def test_bytes_and_texts_of_any_arrow_type_are_read(tmp_path, kind, text):
    caption = pa.array([["a cat"]], text) if pa.types.is_list(text) else pa.array(["a cat"]).cast(text)
    path = write_parquet(tmp_path / "a.parquet", {"picture_column": pa.array([png()], kind), "text": caption})
    assert outcome(ParquetSource(path, image_column="picture_column", caption_column="text")) == {
        "a/00000000": ("a cat",)
    }


def test_a_column_of_paths_is_a_list_of_images(tmp_path):
    write(tmp_path, {"a.png": png(1), "p/b.png": png(2)})
    write_parquet(
        tmp_path / "a.parquet",
        {
            "image": pa.array(["a.png", "p/b.png", "a.png", "../x.png", None, "https://host/x"]),
            "caption": pa.array(["one", "two", "uno", "x", "y", "z"]),
        },
    )
    source = ParquetSource(tmp_path / "a.parquet")
    assert outcome(source) == {
        "a.png": ("one", "uno"),
        "p/b.png": ("two",),
        "../x.png": "unsafe_path",
        "a.parquet, row 4": "missing_pair",
        "a.parquet, row 5": "unsafe_path",
    }
    assert details(source)["a.parquet, row 4"] == "missing_pair: column 'image' names no image"


def test_bad_values_are_rejected_with_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(image_decoding, "MAX_BYTES", 50_000)
    write(tmp_path, {"beside.png": png(5)})
    broken = pa.array([b"\xff"], pa.binary()).view(pa.string())
    images = hub_images(
        {"bytes": png(), "path": None},
        {"bytes": None, "path": "beside.png"},
        None,
        {"bytes": None, "path": None},
        {"bytes": bytes(50_001), "path": "x"},
        {"bytes": None, "path": "../up.png"},
        *[{"bytes": png(), "path": "x"}] * 3,
        {"bytes": b"", "path": "x"},
    )
    captions = pa.concat_arrays(
        [pa.array(["a", "b", "c", "d", "e", "f", None, " "]), broken, pa.array(["j"])]
    )
    source = ParquetSource(write_parquet(tmp_path / "t.parquet", {"image": images, "caption": captions}))

    outcomes = {pair.key[-1]: pair.problem.reason if pair.problem else pair.captions for pair in source}
    accepted, rejected = by_reason(outcomes)
    assert accepted == {"0": ("a",), "1": ("b",), "9": ("j",)}
    assert rejected == {
        "missing_pair": ["2", "3"],
        "too_many_bytes": ["4"],
        "unsafe_path": ["5"],
        "caption_empty": ["6", "7"],
        "caption_encoding": ["8"],
    }
    reasons = details(source)
    assert reasons["t/00000002"] == "missing_pair: column 'image' names no image"
    assert reasons["t/00000004"] == "too_many_bytes: 50,001 bytes; the limit is 50,000"
    assert reasons["t/00000008"] == "caption_encoding: column 'caption' has bytes that are not UTF-8"
    assert source.check() == 10


def good_columns(count: int = 40) -> dict[str, pa.Array]:
    return {
        "image": [png(number) for number in range(count)],
        "caption": pa.array([f"row {n}" for n in range(count)]),
    }


def test_files_that_store_images_in_different_forms_are_rejected(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": [png()], "caption": ["a"]})
    write_parquet(tmp_path / "b.parquet", {"image": ["a.png"], "caption": ["a"]})
    message = "b.parquet stores images in another form than .*a.parquet. Put such files into"
    with pytest.raises(SourceError, match=message):
        ParquetSource(tmp_path).check()


def test_a_truncated_parquet_file_is_never_read_as_a_shorter_one(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", good_columns(6), row_group_size=2)
    data = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(data), 100):
        path.write_bytes(data[:length])
        with pytest.raises(SourceError, match=f"{DAMAGED} .*Fetch it again"):
            ParquetSource(path).check()


def test_a_damaged_page_stops_the_run_where_the_file_has_checksums(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", good_columns(), write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match=f"{DAMAGED} .*(?i:crc|checksum).*Fetch it"):
        list(ParquetSource(path))


def test_rows_that_would_unpack_to_too_much_are_rejected_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(image_decoding, "MAX_BYTES", 100_000)
    columns = {"image": pa.array([bytes(5_000_000)]), "caption": pa.array(["a"])}
    path = write_parquet(tmp_path / "t.parquet", columns, compression="zstd")
    assert path.stat().st_size < 10_000
    message = "t.parquet: the 1 rows of row group 0 would unpack to 5,000,.* bytes. Do not use this file"
    with pytest.raises(SourceError, match=message):
        ParquetSource(path).check()
