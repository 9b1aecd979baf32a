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
from thousandwords.ingest.sources import CocoSource, CsvSource, JsonLinesSource, ParquetSource, table
from thousandwords.ingest.sources.base import SourceError

# ---- JSON lines


def test_lines_of_one_image_are_its_captions(tmp_path):
    lines = '\ufeff{"image": "p/a.png", "caption": "a cat"}\r\n\n{"image": "p//a.png", "caption": "a tom"}\n'
    lines += '{"caption": ["a bee", " two bees "], "image": "./b.png", "more": 1}'
    write(tmp_path, {"p/a.png": png(1), "b.png": png(2), "l.jsonl": lines})
    source = JsonLinesSource(tmp_path / "l.jsonl")
    assert outcome(source) == {"p/a.png": ("a cat", "a tom"), "b.png": ("a bee", "two bees")}
    assert [pair.image for pair in source] == [png(1), png(2)]
    assert [pair.provenance for pair in source] == ["l.jsonl/p/a.png", "l.jsonl/b.png"]


def test_keys_and_the_folder_of_the_images_are_settings(tmp_path):
    write(tmp_path, {"images/a.png": png(), "lists/l.jsonl": '{"file_name": "a.png", "text": "one"}'})
    settings = {"image_column": "file_name", "caption_column": "text", "image_folder": "../images"}
    assert outcome(JsonLinesSource(tmp_path / "lists/l.jsonl", **settings)) == {"a.png": ("one",)}


LINES = [  # in a folder that has the images a to d: each line, its key, and its captions or the reason of its rejection
    (b'{"image": "a.png", "caption": "ok"}', "a.png", ("ok",)),
    (b'{"image": "b.png", "cap', "line 2", "bad_row"),
    (b'["a.png", "text"]', "line 3", "bad_row"),
    (b'{"image": 7, "caption": "x"}', "7", "missing_pair"),
    (b'{"image": "b.png", "caption": 7}', "line 5", "bad_row"),
    (b'{"image": "b.png", "caption": "\xff"}', "line 6", "bad_row"),
    (b'{"image": "b.png", "caption": null}', "b.png", "caption_empty"),
    (b'{"image": "\\u0000", "caption": "x"}', "line 8", "missing_pair"),
    (b'{"image": "\\ud800.png", "caption": "x"}', "line 9", "missing_pair"),
    (b"[" * 100_000, "line 10", "bad_row"),
    (b'{"image": "' + b"x" * 1_500_000 + b'"}', "line 11", "too_many_bytes"),
    (b'{"image": "c.png", "caption": "\\ud800"}', "c.png", "caption_encoding"),
    (b'{"image": "../outside/x.png", "caption": "x"}', "../outside/x.png", "unsafe_path"),
    (b'{"image": "/etc/hostname", "caption": "x"}', "/etc/hostname", "unsafe_path"),
    (b'{"image": "away.png", "caption": "x"}', "away.png", "unsafe_path"),
    (b'{"image": "https://host/x.png", "caption": "x"}', "line 16", "unsafe_path"),
    (b'{"image": "gone.png", "caption": "x"}', "gone.png", "missing_pair"),
    (b'{"image": ".", "caption": "x"}', ".", "not_regular"),
    (b'{"image": "d.png", "caption": "last"}', "d.png", ("last",)),
]


def test_broken_lines_are_rejected_one_by_one(tmp_path):
    write(tmp_path / "outside", {"x.png": png()})
    own = write(tmp_path / "own", {name: png() for name in ("a.png", "b.png", "c.png", "d.png")})
    (own / "away.png").symlink_to(tmp_path / "outside/x.png")
    (own / "l.jsonl").write_bytes(b"\n".join(line for line, *_ in LINES))
    source = JsonLinesSource(own / "l.jsonl")
    assert outcome(source) == {key: expected for _, key, expected in LINES}
    reasons = details(source)
    assert reasons["line 2"].startswith("bad_row: not a JSON object: Invalid control character at")
    assert reasons["line 3"] == "bad_row: not a JSON object: it is list, not an object"
    assert reasons["line 5"] == "bad_row: 'caption' is neither a text nor a list of texts"
    assert reasons["../outside/x.png"].startswith(
        f"unsafe_path: x.png leads out of own, to {tmp_path}/outside;"
    )
    url = (
        "unsafe_path: key 'image' has the URL https://host/x.png; URLs in a list are not fetched. Download it"
    )
    assert reasons["line 16"].startswith(url)


@pytest.mark.parametrize("kind", [JsonLinesSource, CsvSource])
def test_a_line_without_an_end_is_rejected_in_little_memory(tmp_path, kind):
    """A valid line, then 100 million zero bytes without a line end; 2 billion take the same 5 MB, but longer."""
    start = "image,caption\na.png,ok\n" if kind is CsvSource else '{"image": "a.png", "caption": "ok"}\n'
    write(tmp_path, {"a.png": png(), "list": start})
    os.truncate(tmp_path / "list", 100_000_000)
    source = kind(tmp_path / "list")
    tracemalloc.start()
    if kind is CsvSource:
        with pytest.raises(SourceError, match="line 3: over 1,000,000 bytes"):
            list(source)
    else:
        assert details(source)["line 2"] == "too_many_bytes: a line over 1,000,000 bytes"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


# ---- COCO


def write_coco(folder: Path, images: list, annotations: list, **more: object) -> Path:
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, **more}
    write(folder, {"captions.json": json.dumps(content)})
    return folder / "captions.json"


def annotation(identity: object, caption: object) -> dict:
    return {"id": 1, "image_id": identity, "caption": caption}


def test_the_captions_of_an_image_are_collected_into_one_pair(tmp_path):
    write(tmp_path, {"val2017/0.jpg": png(0), "val2017/1.jpg": png(1)})
    images = [{"id": 7, "file_name": "0.jpg"}, {"id": 5, "file_name": "1.jpg"}]
    captions = [(5, "a bee"), (7, "a cat"), (5, "two bees "), (5, "a bee")]
    path = write_coco(tmp_path / "annotations", images, [annotation(*caption) for caption in captions])
    source = CocoSource(path, image_folder="../val2017")
    assert outcome(source) == {"0.jpg": ("a cat",), "1.jpg": ("a bee", "two bees")}
    assert [pair.image for pair in source] == [png(0), png(1)]
    assert [pair.provenance for pair in source] == ["captions.json/0.jpg", "captions.json/1.jpg"]


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
    monkeypatch.setattr(table, "MAX_JSON", 50)
    path = write_coco(tmp_path, [], [])
    with pytest.raises(
        SourceError, match="captions.json is one JSON value of 61 bytes; the limit is 50. Write JSON li"
    ):
        CocoSource(path).check()


# ---- Parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DAMAGED = "t.parquet is not a Parquet file, or is truncated or damaged"


def write_parquet(path: Path, columns: dict[str, pa.Array | list], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def hub_images(*values: dict | None) -> pa.Array:
    return pa.array(values, STRUCT)


def test_each_row_with_an_image_inside_is_a_pair(tmp_path):
    images = [hub_images({"bytes": png(number), "path": "x.png"}) for number in range(3)]
    first = {"id": [1, 2], "caption": [["one", "uno"], ["two"]], "image": pa.concat_arrays(images[:2])}
    write_parquet(tmp_path / "data/train-1.parquet", {"image": images[2], "caption": ["three"]})
    write_parquet(tmp_path / "data/train-0.parquet", first)
    write(tmp_path, {"data/README.md": "hello", "data/.train.parquet": "half"})
    source = ParquetSource(tmp_path / "data")
    captions = {
        "train-0/00000000": ("one", "uno"),
        "train-0/00000001": ("two",),
        "train-1/00000000": ("three",),
    }
    assert outcome(source) == captions
    assert [pair.image for pair in source] == [png(0), png(1), png(2)]
    files = ["train-0.parquet/00000000", "train-0.parquet/00000001", "train-1.parquet/00000000"]
    assert [pair.provenance for pair in source] == files
    assert list(outcome(ParquetSource(f"{tmp_path}/data/train-1.parquet"))) == ["train-1/00000000"]


def test_images_of_which_none_has_a_path_or_none_has_bytes_are_read(tmp_path):
    write(tmp_path, {"a.png": png(1)})
    for image in ({"bytes": png(), "path": None}, {"bytes": None, "path": "a.png"}):
        path = write_parquet(tmp_path / "t.parquet", {"image": pa.array([image]), "caption": ["a cat"]})
        assert outcome(ParquetSource(path)) == {"t/00000000": ("a cat",)}


TEXTS = [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_and_texts_of_any_arrow_type_are_read(tmp_path, kind, text):
    caption = pa.array([["a cat"]], text) if pa.types.is_list(text) else pa.array(["a cat"]).cast(text)
    path = write_parquet(tmp_path / "a.parquet", {"photo": pa.array([png()], kind), "text": caption})
    source = ParquetSource(path, image_column="photo", caption_column="text")
    assert outcome(source) == {"a/00000000": ("a cat",)}


def test_a_column_of_paths_is_a_list_of_images(tmp_path):
    write(tmp_path, {"a.png": png(1), "p/b.png": png(2)})
    paths = ["a.png", "p/b.png", "a.png", "../x.png", None, "https://host/x"]
    columns = {"image": paths, "caption": ["one", "two", "uno", "x", "y", "z"]}
    source = ParquetSource(write_parquet(tmp_path / "a.parquet", columns))
    accepted, rejected = by_reason(outcome(source))
    assert accepted == {"a.png": ("one", "uno"), "p/b.png": ("two",)}
    assert rejected == {"unsafe_path": ["../x.png", "a.parquet, row 5"], "missing_pair": ["a.parquet, row 4"]}
    assert details(source)["a.parquet, row 4"] == "missing_pair: column 'image' names no image"


ROWS = [  # bytes and path of the image, caption, and the captions or the reason of the rejection
    (png(), None, b"a", ("a",)),
    (None, "beside.png", b"b", ("b",)),
    (None, None, b"c", "missing_pair"),
    (bytes(50_001), "x", b"d", "too_many_bytes"),
    (None, "../up.png", b"e", "unsafe_path"),
    (png(), "x", None, "caption_empty"),
    (png(), "x", b" ", "caption_empty"),
    (png(), "x", b"\xff", "caption_encoding"),
    (b"", "x", b"f", ("f",)),
]


def test_bad_values_are_rejected_with_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(image_decoding, "MAX_BYTES", 50_000)
    write(tmp_path, {"beside.png": png(5)})
    data, paths, captions, outcomes = zip(*ROWS, (None, None, b"g", "missing_pair"), strict=True)
    images = [{"bytes": image, "path": path} for image, path in zip(data[:-1], paths[:-1], strict=True)]
    columns = {
        "image": hub_images(*images, None),
        "caption": pa.array(captions, pa.binary()).view(pa.string()),
    }
    source = ParquetSource(write_parquet(tmp_path / "t.parquet", columns))
    assert source.check() == 10
    assert [pair.problem.reason if pair.problem else pair.captions for pair in source] == list(outcomes)
    reasons = details(source)
    assert reasons["t/00000002"] == "missing_pair: column 'image' names no image"
    assert reasons["t/00000003"] == "too_many_bytes: 50,001 bytes; the limit is 50,000"
    assert reasons["t/00000007"] == "caption_encoding: column 'caption' has bytes that are not UTF-8"


def good_columns(count: int = 40) -> dict[str, list]:
    return {"image": list(map(png, range(count))), "caption": [f"row {number}" for number in range(count)]}


def test_files_that_store_images_in_different_forms_are_rejected(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": [png()], "caption": ["a"]})
    write_parquet(tmp_path / "b.parquet", {"image": ["a.png"], "caption": ["a"]})
    with pytest.raises(
        SourceError, match="b.parquet stores images in another form than .*a.parquet. Put such"
    ):
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
    columns = {"image": [bytes(5_000_000)], "caption": ["a"]}
    path = write_parquet(tmp_path / "t.parquet", columns, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(SourceError, match="the 1 rows of row group 0 would unpack to 5,000,.* bytes. Do not"):
        ParquetSource(path).check()
