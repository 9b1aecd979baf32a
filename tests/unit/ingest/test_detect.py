"""`data.source: auto`: each usual layout is read with only its path given, and what cannot be used says why."""

import gzip
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.images import details, encoded, odd_member, png, write, write_tar
from tests.helpers.paths import SHARED
from thousandwords.data.image_decoding import decode_image
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.ingest import open_source, resolve_source
from thousandwords.ingest.prepare import prepare_pair
from thousandwords.ingest.sources import CsvSource
from thousandwords.ingest.sources.base import RawPair, SourceError

REPORTS = SHARED / "data/reports"

A, B = {"a.png": png(1)}, {"b.png": png(2)}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
COCO = json.dumps({
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [{"image_id": 1, "caption": "a cat"}, {"image_id": 2, "caption": "a bee"}],
})  # fmt: skip
ROWS = [{"file_name": "a.png", "text": "a cat"}, {"file_name": "b.png", "text": "a bee"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "file_name,text\na.png,a cat\nb.png,a bee\n"
TEXTS = {"a.txt": "a cat", "b.txt": "a bee"}


def config(path: Path | str, **settings: object) -> DataConfig:
    return DataConfig(**{"source": "auto", "path": str(path), "image_size": 16, **settings})


def read(path: Path, **settings: object) -> dict[str, tuple[str, ...] | str]:
    """{the last part of the key: captions, or the reason of a rejection}; the count of the check is right."""
    source = open_source(config(path, **settings))
    count, pairs = source.check(), list(source)
    assert len(pairs) == count
    return {pair.key.split("/")[-1]: pair.problem.reason if pair.problem else pair.captions for pair in pairs}


KARPATHY = json.dumps(
    {
        "dataset": "coco",
        "images": [
            {"filepath": folder, "filename": name, "sentids": [1], "split": "test",
             "sentences": [{"tokens": text.split(), "raw": text, "sentid": 1}]}
            for folder, name, text in (("val2014", "a.png", "a cat"), ("train2014", "b.png", "a bee"))
        ],
    }
)  # fmt: skip
CHAT = json.dumps(
    [
        {"id": name, "image": f"{name}.png", "conversations": [{"from": "human", "value": "<image>\nDescribe it."},
                                                              {"from": "gpt", "value": text}]}
        for name, text in (("a", "a cat"), ("b", "a bee"))
    ]
)  # fmt: skip

LAYOUTS = {
    "folder": {**A, **B, **TEXTS},
    "folder, capitals": {"A.PNG": png(1), "A.TXT": "a cat", "B.JFIF": png(2), "B.Txt": "a bee"},
    "folder, deep": {f"x/y/{name}": data for name, data in {**A, **B, **TEXTS}.items()},
    "folder, .caption": {**A, **B, "a.caption": "a cat", "b.caption": "a bee"},
    "texts in a folder of their own": {"images/a.png": png(1), "images/b.png": png(2), "captions/a.txt": "a cat", "captions/b.txt": "a bee"},
    "the same, deep, capitals": {"x/Images/t/a.png": png(1), "x/Images/b.png": png(2), "x/Texts/t/a.TXT": "a cat", "x/Texts/b.json": '{"text": "a bee"}'},
    "imagefolder, csv": {**A, **B, "metadata.csv": TABLE},
    "imagefolder, jsonl": {**A, **B, "metadata.jsonl": LINES, "README.md": "x"},
    "imagefolder, json": {**A, **B, "metadata.json": json.dumps(ROWS, indent=1)},
    "imagefolder, splits": {
        **{f"train/{name}": data for name, data in A.items()},
        **{f"test/{name}": data for name, data in B.items()},
        "train/metadata.jsonl": LINES.split("\n")[0],
        "test/metadata.jsonl": LINES.split("\n")[1],
    },
    "csv, images in a folder": {"images/a.png": png(1), "images/b.png": png(2), "list.csv": TABLE},
    "csv, semicolons": {**A, **B, "own.csv": "id;Image Path;Title\n1;a.png;a cat\n2;b.png;a bee\n"},
    "csv, other names": {**A, **B, "own.csv": "no,bild,wörter\n1,a.png,a cat\n2,b.png,a bee\n"},
    "csv, blanks in the header": {**A, **B, "own.csv": "image, caption\na.png, a cat\nb.png, a bee\n"},
    "csv, Windows": {"p/a.png": png(1), "p/b.png": png(2), "t.csv": "image,caption\np\\a.png,a cat\np\\b.png,a bee\n"},
    "tsv": {**A, **B, "own.tsv": "path\tdescription\na.png\ta cat\nb.png\ta bee\n"},
    "no header": {**A, **B, "captions.token.txt": "a.png#0\ta cat\nb.png#0\ta bee\n"},
    "flickr30k": {**A, **B, "results.csv": "image_name| comment_number| comment\na.png| 0| a cat\nb.png| 0| a bee\n"},
    "flickr8k": {"Images/a.png": png(1), "Images/b.png": png(2), "captions.txt": "image,caption\na.png,a cat\nb.png,a bee\n"},
    "train.csv and val.csv": {**A, **B, "train.csv": "image,caption\na.png,a cat\n", "val.csv": "image,caption\nb.png,a bee\n"},
    "json by name": {**A, **B, "captions.json": '{"a.png": "a cat", "b.png": ["a bee"]}'},
    "json beside each image": {**A, **B, "a.json": '{"text": "a cat"}', "b.json": '{"text": ["a bee"]}'},
    "names with both suffixes": {**A, **B, "a.png.txt": "a cat", "b.png.txt": "a bee"},
    "json, names with both suffixes": {**A, **B, "a.png.json": '{"title": "a cat"}', "b.png.json": '{"title": "a bee"}'},
    "Karpathy": {"val2014/a.png": png(1), "train2014/b.png": png(2), "dataset_coco.json": KARPATHY},
    "Karpathy, in annotations": {"val2014/a.png": png(1), "train2014/b.png": png(2), "annotations/d.json": KARPATHY},
    "Karpathy, without folders": {**A, **B, "dataset.json": re.sub('"filepath": "[a-z0-9]*", ', "", KARPATHY)},
    "conversations": {**A, **B, "chat.json": CHAT},
    "names without suffix": {"images/1.png": png(1), "images/2.png": png(2), "t.csv": "id,kind,caption\n1,x,a cat\n2,y,a bee\n"},
    "json by name without suffix": {**A, **B, "meta.json": '{"a": {"caption": "a cat"}, "b": {"caption": "a bee"}}'},
    "json by name, images in a folder": {"images/a.png": png(1), "images/b.png": png(2), "meta.json": '{"a": {"caption": "a cat"}, "b": {"caption": "a bee"}}'},
    "json, splits": {**A, **B, "t.json": json.dumps({"v": 1, "train": ROWS[:1], "val": ROWS[1:], "tags": ["a", "b", "c"]})},
    "json, image objects": {**A, **B, "t.json": json.dumps([{"image": {"path": row["file_name"]}, "text": row["text"]} for row in ROWS])},
    "csv, Excel's delimiter": {**A, **B, "t.csv": "sep=;\nimage;text\na.png;a cat\nb.png;a bee\n"},
    "csv, UTF-16": {**A, **B, "t.csv": "image\tcaption\r\na.png\ta cat\r\nb.png\ta bee\r\n".encode("utf-16")},
    "csv, two columns of captions": {**A, **B, "t.csv": "file,caption_1,caption_2\na.png,a cat,x\nb.png,a bee,y\n"},
    "flickr30k .token": {**A, **B, "results_20130124.token": "a.png#0\ta cat\nb.png#0\ta bee\n"},
    "csv, caption_str": {**A, **B, "t.csv": "image_path,class,caption_str\na.png,animal,a cat\nb.png,animal,a bee\n"},
    "coco": {"val2017/a.png": png(1), "val2017/b.png": png(2), "annotations/captions_val2017.json": COCO},
    "coco with boxes": {**A, **B, "captions.json": COCO, "instances.json": '{"images": [], "annotations": []}'},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_usual_layout_is_read_with_only_its_path_given(tmp_path, layout):
    own = write(tmp_path / "own", LAYOUTS[layout])
    captions = read(own).values()
    assert sorted(captions) == [("a bee",), ("a cat",)]


def test_what_lacks_its_half_in_the_other_folder_is_counted(tmp_path):
    images = {"images/a.png": png(1), "images/b.png": png(2)}
    write(tmp_path, {**images, "captions/a.txt": "a cat", "captions/c.txt": "no image"})
    assert read(tmp_path) == {"a.png": ("a cat",), "b.png": "missing_pair", "c.txt": "missing_pair"}


@pytest.mark.parametrize("place", ["", "data"])
def test_hub_parquet_is_read_also_in_the_folder_data_of_a_clone(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    table = pa.table({"image": [{"bytes": png(), "path": "x.png"}], "text": ["a cat"]})
    pq.write_table(table, tmp_path / place / "train-00000-of-00001.parquet")
    assert list(read(tmp_path).values()) == [("a cat",)]
    assert list(read(tmp_path, source="parquet").values()) == [("a cat",)]


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    "layout",
    ["folder", "texts in a folder of their own", "imagefolder, jsonl", "csv, images in a folder", "coco"],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_an_archive_is_read_like_the_folder_that_was_packed(tmp_path, suffix, layout, in_folder):
    files = {f"own/{name}": data for name, data in LAYOUTS[layout].items()}
    archive = tmp_path / f"x/own.{suffix}"
    archive.parent.mkdir()
    if suffix == "zip":
        archive.write_bytes(zipped(files))
    else:
        write_tar(archive, list(files.items()))
    if suffix == "tar.gz":
        archive.write_bytes(gzip.compress(archive.read_bytes()))
    assert sorted(read(archive.parent if in_folder else archive).values()) == [("a bee",), ("a cat",)]


def test_names_and_links_in_an_archive_lead_nowhere(tmp_path):
    write(tmp_path, {"secret.png": png()})
    names = {"../secret.png": png(1), "a.png": png(1), "../secret.txt": "x", "a.txt": "a cat"}
    (tmp_path / "own.zip").write_bytes(zipped(names))
    assert read(tmp_path / "own.zip") == {"secret.png": "unsafe_path", "a.png": ("a cat",)}
    members = [("/abs/b.png", png(2)), ("/abs/b.txt", "a bee"), ("own/a.png", png(1)), ("own/a.txt", "a")]
    links = [odd_member(name, tarfile.SYMTYPE, "/etc/hostname") for name in ("own/c.png", "own/c.txt")]
    write_tar(tmp_path / "own.tar", members + links)
    expected = {"a.png": ("a",), "b.png": "unsafe_path", "c.png": "not_regular"}
    assert read(tmp_path / "own.tar", source="folder") == expected


def test_a_decompression_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("thousandwords.ingest.sources.archive.ALWAYS_ALLOWED", 1_000_000)
    (tmp_path / "own.tar.gz").write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(
        SourceError, match="own.tar.gz would unpack to more than .* bytes, as a decompression bo"
    ):
        read(tmp_path / "own.tar.gz")
    with zipfile.ZipFile(tmp_path / "own.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.png", bytes(40_000_000))
        packed.writestr("a.txt", "a cat")
    assert read(tmp_path / "own.zip") == {"a.png": "too_many_bytes"}


@pytest.mark.parametrize(
    ("suffix", "data"), [("zip", b"PK\x03\x04 no more"), ("tar.gz", b"\x1f\x8b\x08 no more")]
)
def test_a_damaged_archive_is_reported(tmp_path, suffix, data):
    write(tmp_path, {f"own.{suffix}": data})
    with pytest.raises(SourceError, match=f"own.{suffix} (is not a zip|cannot be unpacked).*Fetch it again"):
        read(tmp_path / f"own.{suffix}")


def test_the_tars_of_all_folders_are_read(tmp_path):
    for split, text in (("train", "a cat"), ("val", "a bee")):
        (tmp_path / split).mkdir()
        write_tar(tmp_path / split / "0.tar", [(f"{split}.png", png()), (f"{split}.txt", text)])
    assert read(tmp_path) == {"train": ("a cat",), "val": ("a bee",)}


@pytest.mark.parametrize(
    ("field", "captions"),
    [
        ('"[\'a cat\', ""a bee\'s""]"', ("a cat", "a bee's")),  # pandas
        ("['a cat' 'a bee']", ("a cat", "a bee")),  # numpy
        ('"[""a cat"", null]"', ('["a cat", null]',)),
        ("[cat] on a mat]", ("[cat] on a mat]",)),
        ('"[' + "'f', " * 20_000 + ']"', "caption_too_long"),  # not parsed
        ("NaN", "caption_empty"),
        ("none", "caption_empty"),
    ],
)
def test_a_field_of_a_table_may_be_a_list_or_stand_for_no_value(tmp_path, field, captions):
    write(tmp_path, {**A, **B, "t.csv": f"image,caption\na.png,{field}\nb.png,a bee\n"})
    pairs = {
        pair.key: pair.problem.reason if pair.problem else pair.captions
        for pair in CsvSource(tmp_path / "t.csv")
    }
    assert pairs == {"a.png": captions, "b.png": ("a bee",)}


def test_a_comma_in_a_caption_of_a_table_without_header_is_no_column(tmp_path):
    write(tmp_path, {**A, **B, "t.csv": "a.png,a cat, a tree\nb.png,a bee\n"})
    assert read(tmp_path) == {"a.png": ("a cat, a tree",), "b.png": ("a bee",)}


def test_an_image_whose_row_is_bad_is_counted_once(tmp_path):
    lines = [
        '{"image": "a.png", "caption": 7}',
        '{"image": "b.png", "caption": NaN}',
        '{"image": "c.png", "caption": "a cow"}',
    ]
    write(tmp_path, {**A, **B, "c.png": png(3), "t.jsonl": "\n".join(lines)})
    assert read(tmp_path) == {"line 1": "bad_row", "b.png": "caption_empty", "c.png": ("a cow",)}


def test_webdataset_is_found_and_names_with_dots_are_read(tmp_path):
    write_tar(tmp_path / "a.tar", [("000_v1.5.png", png(1)), ("000_v1.5.txt", "a cat"), ("1.png", png(2)),
                                   ("1.seg.png", png(3)), ("1.json", '{"text": "a bee"}')])  # fmt: skip
    assert read(tmp_path) == {"000_v1.5": ("a cat",), "1": ("a bee",)}
    assert read(tmp_path / "a.tar") == read(tmp_path)


def test_what_was_decided_is_one_line_and_a_setting_overrides_it(tmp_path):
    write(tmp_path, {**A, **B, "t.csv": "path,title,caption\na.png,one,a cat\nb.png,two,a bee\n"})
    settings, line = resolve_source(config(tmp_path))
    table = f"{tmp_path}/t.csv"
    assert (settings.source, settings.path) == ("csv", table)
    assert line == f"{table} is a table (source csv), image_column 'path', caption_column 'caption'"
    assert sorted(read(tmp_path, caption_column="title").values()) == [("one",), ("two",)]
    assert resolve_source(settings) == (settings, "")


def test_images_that_no_list_names_are_counted_and_do_not_stop_the_run(tmp_path):
    write(tmp_path, {**A, **B, "more/c.png": png(3), "t.csv": TABLE})
    assert read(tmp_path) == {"a.png": ("a cat",), "b.png": ("a bee",), "c.png": "not_listed"}


def test_images_beside_a_table_with_images_of_its_own_are_no_inputs(tmp_path):
    """The file may lie in a folder of downloads."""
    table = {"image": [{"bytes": png(), "path": None}], "text": ["a cat"]}
    pq.write_table(pa.table(table), tmp_path / "own.parquet")
    write(tmp_path, {**A, "holiday/b.jpg": png(2)})
    assert list(read(tmp_path / "own.parquet").values()) == [("a cat",)]


def test_a_text_can_be_one_caption(tmp_path):
    write(tmp_path, {**A, "a.txt": "A cat.\n\nColours: red\n- simple\n"})
    assert read(tmp_path) == {"a.png": ("A cat.", "Colours: red", "- simple")}
    assert read(tmp_path, caption_lines="joined") == {"a.png": ("A cat. Colours: red - simple",)}


def test_links_are_read_only_where_a_setting_allows(tmp_path):
    write(tmp_path, {"blobs/1": png(), "blobs/2": "a cat"})
    own = link(tmp_path / "own", tmp_path / "blobs")
    assert details(open_source(config(own))) == {
        "a.png": f"unsafe_path: a.png leads out of own, to {tmp_path}/blobs; to read it, add that folder or one above "
        "it to data.link_roots"
    }
    assert read(own, link_roots=(f"{tmp_path}/blobs",)) == {"a.png": ("a cat",)}


def link(own: Path, blobs: Path) -> Path:
    """a.png and a.txt as links to the files 1 and 2 in another folder."""
    own.mkdir(parents=True)
    for number, name in enumerate(("a.png", "a.txt"), 1):
        (own / name).symlink_to(blobs / str(number))
    return own


@pytest.mark.parametrize(
    ("cache", "own"),
    [
        (".dvc/cache/files/md5/ab", "data/own"),
        (".git/annex/objects/x", "data/own"),
        ("datasets--me--own/blobs", "datasets--me--own/snapshots/0f3a"),
    ],
)
def test_the_caches_of_dvc_git_annex_and_the_hub_are_no_danger(tmp_path, cache, own):
    write(tmp_path / cache, {"1": png(), "2": "a cat"})
    link(tmp_path / own, tmp_path / cache)
    assert read(tmp_path / own) == {"a.png": ("a cat",)}
    root = tmp_path.joinpath(*Path(cache).parts[:2])
    shutil.move(root, tmp_path / "away")
    root.symlink_to(tmp_path / "away")
    assert read(tmp_path / own) == {"a.png": "unsafe_path"}


def zipped(files: dict[str, bytes | str], encrypted: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
            packed.filelist[-1].flag_bits |= encrypted
    return buffer.getvalue()


URLS = "image,caption\nhttps://host/1.jpg,a cat\nhttps://host/2.jpg,a bee\n"
REFUSED = {
    "nothing": ({}, "has no captioned images, no files. They can be: images .PNG, JPEG.* with a .txt beside each, a tab"),
    "URLs": ({"t.csv": URLS}, "t.csv: its column 'image' holds URLs, and nothing is fetched.* with img2dataset, then"),
    "URLs in JSON": ({"t.jsonl": '{"url": "https://x/y", "text": "a"}'}, "t.jsonl: its column 'url' holds URLs"),
    "no captions": (A, "has 1 images, like a.png, but no captions. Put a text of the same name beside each, like"),
    "arrow": ({"data-00000-of-00001.arrow": b"x"}, "arrow is an Arrow file, .*Write Parquet instead: datasets.load"),
    "Git LFS": ({"x.tar": LFS}, "x.tar is a Git LFS pointer, not the file. Run in its repository: git lfs pull"),
    "Git LFS images": ({"a.png": LFS, "a.txt": "a"}, "a.png is a Git LFS pointer, not the file. Run in its"),
    "HEIC": ({"a.heic": b"x", "a.txt": "a"}, "has no images .*the format of a.heic is not read. Convert such files"),
    "other files": ({"model.bin": b"x"}, "has no captioned images, only files like model.bin. They can be"),
    "two lists": ({**A, "x.csv": "image,text\na.png,a", "y.csv": "image,text\na.png,b"},
                  "has several lists of images with captions: .*x.csv, .*y.csv. Set data.path to one of them"),
    "URLs under a header": ({"t.csv": "url\nhttps://x/1.jpg\n"}, "t.csv is a list of URLs, and nothing is fetched"),
    "numbers of classes": ({**A, "metadata.csv": "file_name,label\na.png,3\n"},
                           "metadata.csv has no column 'caption', only 'file_name', 'label'. Set data.caption_column"),
    "unknown columns": ({"t.csv": "bild,nummer\n1,2\n"}, "t.csv has no column 'image', only 'bild', 'nummer'. Set data.ima"),
    "a spreadsheet": ({**A, "captions.xlsx": b"x"}, "but no captions. .* file_name,text. captions.xlsx is a spreadsheet: save it as CSV"),
    "a packed table": ({**A, "captions.csv.gz": b"x"}, "but no captions. .* file_name,text. captions.csv.gz is packed: unpack it first"),
    "another machine's paths": ({**A, "t.csv": "image,caption\nC:\\pics\\a.png,a cat\n"},
                                "no C:.pics.a.png. Such a path holds on one machine only: write the paths relative to the"),
    "images in a table": ({"t.csv": f"image,caption\n{'x' * 5000},a cat\n"}, "no x{100}. Set data.image_folder to"),
    "images in a zip": ({"t.csv": TABLE, "images.zip": b"PK"}, "no a.png. Unpack images.zip, or set data.image_folder"),
    "a list of URLs": ({"urls.txt": "https://x/1.jpg\nhttps://x/2.jpg\n"}, "urls.txt is a list of URLs, and nothing is fet"),
    "URLs without header": ({"t.tsv": "a cat\thttps://x/1.jpg\na bee\thttps://x/2.jpg\n"}, "t.tsv: its column .* holds URLs"),
    "zip of URLs": ({"own.zip": zipped({"list/urls.csv": URLS})}, "own.zip/list/urls.csv: its column 'image' holds URLs"),
    "zip in a zip": ({"own.zip": zipped({"in.zip": zipped({"a.png": png()})})},
                     "own.zip/in.zip is an archive inside an archive. Unpack the outer one, and set data.path to the fol"),
    "encrypted zip": ({"own.zip": zipped({"a.png": png()}, encrypted=True)}, "own.zip is encrypted. Unpack it, and set"),
    "rar in a folder": ({"x.rar": b"x"}, "x.rar is packed in a way that is not read. Unpack it"),
    "no images": ({"t.csv": TABLE}, "There are no images of .*t.csv in .*own: no a.png. Set data.image_folder to"),
    "boxes": ({**A, "i.json": COCO.replace("caption", "bbox")}, "i.json has no captions. Use the file of captions"),
    "two zips": ({"a.zip": b"PK", "b.zip": b"PK"}, "has several archives: a.zip, b.zip. Unpack them"),
    "truncated JSON list": ({**A, "metadata.json": '[{"file_name": "a.png",'}, "metadata.json begins like one JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_cause_and_the_fix(tmp_path, case):
    files, message = REFUSED[case]
    own = write(tmp_path / "own", files)
    own.mkdir(exist_ok=True)
    with pytest.raises(SourceError, match=message):
        read(own)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "data.path: there is nothing at .*nowhere. Set it to your folder, table or archive"),
        ("a.png", "a.png is a single image. Set data.path to the folder that it is in"),
        ("x.rar", "x.rar is packed in a way that is not read. Unpack it, and set data.path to the folder"),
        ("x.bin", "x.bin is no source of captioned images. They can be: images .PNG, JPEG"),
    ],
)
def test_a_file_that_is_no_source_is_refused_with_the_fix(tmp_path, name, message):
    write(tmp_path, {**A, "x.rar": b"x", "x.bin": b"x"})
    with pytest.raises(SourceError, match=message):
        read(tmp_path / name)


def test_what_is_there_only_by_name_is_refused_with_the_fix(tmp_path):
    write(tmp_path, {"pics.dvc": "outs:\n- path: pics\n", "more/a.png": png()})
    with pytest.raises(
        SourceError, match=f"there is nothing at {tmp_path}/pics. Run: dvc pull {tmp_path}/pics.dvc"
    ):
        read(tmp_path / "pics")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/x").symlink_to(tmp_path / "more")
    with pytest.raises(SourceError, match="links has only links to folders, like x, which are not followed"):
        read(tmp_path / "links")


def test_a_table_without_a_header_gets_its_columns_from_a_setting(tmp_path):
    write(tmp_path, {**A, **B, "t.csv": "1,a.png,a cat\n2,b.png,a bee\n", "u.csv": "one,a cat\ntwo,a bee\n"})
    settings = {"source": "csv", "columns": ("id", "image", "caption")}
    assert read(tmp_path / "t.csv", **settings) == {"a.png": ("a cat",), "b.png": ("a bee",)}
    with pytest.raises(SourceError, match="first line is taken for the header; .*set data.columns: .image"):
        read(tmp_path / "u.csv", source="csv")


def test_a_row_with_too_many_fields_says_what_to_quote(tmp_path):
    write(tmp_path, {**A, **B, "t.csv": "image,caption\na.png,a cat, a tree\nb.png,a bee,a tree\n"})
    detail = "bad_row: 3 fields where the header has 2; quote captions that hold a ','"
    assert details(open_source(config(tmp_path / "t.csv")))["line 3"] == detail
    assert read(tmp_path / "t.csv")["a.png"] == ("a cat, a tree",)  # a comma and a blank are prose


def test_near_duplicates_compare_the_whole_image():
    wide = np.zeros((32, 96, 3), np.uint8)
    other = wide.copy()
    other[:, :32] = 255  # outside the square that is stored
    settings = config("x", source="folder", near_duplicates="hash")
    first, second = (
        prepare_pair(RawPair("a", encoded(pixels), ("a cat",), ""), settings, 0) for pixels in (wide, other)
    )
    assert first.image == second.image and first.image_hash.colors != second.image_hash.colors


# ---- the inputs of public reports, where they are


@pytest.mark.skipif(not REPORTS.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("name", "count", "rejected"),
    [("tar-dots", 8, 0), ("capitals", 20, 0), ("jfif", 20, 0), ("json-list", 20, 0), ("hub-clone", 20, 0),
     ("backslashes", 20, 0), ("tars", 10, 0), ("csv-blanks", 20, 0), ("headerless", 20, 0), ("paragraphs", 20, 0),
     ("few", 20, 0), ("json-list/by-name.json", 20, 0)],
)  # fmt: skip
def test_inputs_of_public_reports_are_read(name, count, rejected):
    pairs = list(open_source(config(REPORTS / name)))
    assert len(pairs) == count and sum(pair.problem is not None for pair in pairs) == rejected


@pytest.mark.skipif(not REPORTS.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("IMG_0001.HEIC", "bad_format"), ("bitfields-444.bmp", "bad_mode"), ("float-rgb.tif", "bad_mode"),
     ("webp-inside.tif", "bad_mode")],
)  # fmt: skip
def test_an_image_that_pillow_cannot_read_has_the_right_reason(name, reason):
    with pytest.raises(ValueError, match=f"^{reason}: "):
        decode_image((SHARED / "data/faults/reasons" / name).read_bytes())
