"""Folders, tables and tars: each input comes once, in order, as a pair or with the reason why not."""

import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.images import by_reason, details, odd_member, outcome, png, write, write_tar
from thousandwords.data import image_decoding
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.prepare import prepare_pair
from thousandwords.ingest.sources import CsvSource, FolderSource, WebDatasetSource
from thousandwords.ingest.sources.base import SourceError

# ---- a folder


def test_a_folder_pairs_each_image_with_the_text_of_its_name(tmp_path):
    write(tmp_path, {"b.png": png(), "b.txt": "a bee\n\n  two bees \na bee\n", "notes.md": "another file"})
    write(tmp_path, {"sub/a.b.JPG": png(7), "sub/a.b.txt": "an ape", ".hidden.png": b""})
    assert outcome(FolderSource(tmp_path)) == {"b.png": ("a bee", "two bees"), "sub/a.b.JPG": ("an ape",)}
    *_, pair = FolderSource(tmp_path)
    assert pair.image == png(7) and pair.provenance == f"{tmp_path.name}/sub/a.b.JPG"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xef\xbb\xbfa cat\r\n", ("a cat",)),
        ("\U0001f469\u200d\U0001f680 \u202eon it".encode(), ("\U0001f469\u200d\U0001f680 \u202eon it",)),
        (b"", "caption_empty"),
        (b" \n\t\n", "caption_empty"),
        (b"caf\xe9", "caption_encoding"),
        ("a cat\rtwo".encode("utf-16"), ("a cat", "two")),
        (b"a\0cat", "caption_encoding"),
        (b"\xed\xa0\x80", "caption_encoding"),
        (("e" + "\u0301" * 5_000).encode(), "caption_too_long"),
        (b"x" * 1_000_001, "caption_too_long"),
    ],
)
def test_captions_are_utf8_lines_or_rejected(tmp_path, text, expected):
    write(tmp_path, {"a.png": png(), "a.txt": text})
    assert outcome(FolderSource(tmp_path)) == {"a.png": expected}


def test_an_image_or_text_without_the_other_is_reported(tmp_path):
    write(tmp_path, {"a.png": png(), "a.txt": "a", "b.png": png(), "c.txt": "see"})
    missing = {"b.png": "missing_pair", "c.txt": "missing_pair"}
    assert outcome(FolderSource(tmp_path)) == {"a.png": ("a",), **missing}


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "IMG_0001.jxl", "IMG_0001.unknown"])
def test_a_file_of_another_format_beside_a_text_is_named(tmp_path, name):
    write(tmp_path, {name: b"x", "IMG_0001.txt": "a cat", "IMG_0002.txt": "a bee"})
    with pytest.raises(SourceError, match=f"has no images .png.*; .* format of {name} is not read"):
        FolderSource(tmp_path).check()
    write(tmp_path, {"b.png": png(), "b.txt": "b", f"b.{name}": b"x", "b.heic": b"x"})
    expected = {"IMG_0002.txt": "missing_pair: there is no image beside IMG_0002.txt"}
    if name.endswith("unknown"):  # the others are inputs, which the decoder rejects as bad_format
        detail = f"missing_pair: there is no image beside IMG_0001.txt; the format of {name} is not read"
        expected["IMG_0001.txt"] = detail
    else:
        expected[f"b.{name}"] = "missing_pair: there is no b.IMG_0001.txt"
    assert details(FolderSource(tmp_path)) == expected


def test_an_image_of_another_format_in_a_tar_is_named_by_the_decoder(tmp_path):
    heic = b"\0\0\0\x14ftypheic\0\0\0\0heic"
    members = [("a.heic", heic), ("a.txt", "a"), ("b.heic", heic), ("b.png", png()), ("b.txt", "b")]
    write_tar(tmp_path / "t.tar", members)
    config = DataConfig(source="webdataset")
    first, second = (prepare_pair(pair, config, 0) for pair in WebDatasetSource(tmp_path))
    assert (first.id, first.reason) == ("t/a", "bad_format") and "looks like HEIC" in first.detail
    assert (second.key, second.format) == ("t/b", "PNG")


def test_anything_but_a_regular_file_in_the_folder_is_rejected_unread(tmp_path, monkeypatch):
    outside = write(tmp_path / "outside", {"secret.png": png(), "more/x.png": png()})
    root = write(tmp_path / "own", {"ok.png": png(), "big.png": bytes(3_000_000), "folder.png/x.png": png()})
    os.mkfifo(root / "pipe.png")
    links = {"away": outside / "secret.png", "loop": root / "loop.png", "nothing": root / "gone"}
    links["inside"] = root / "ok.png"
    for name, target in links.items():
        (root / f"{name}.png").symlink_to(target)
    (root / "elsewhere").symlink_to(outside / "more")
    write(root, {f"{name}.txt": "text" for name in ("ok", "big", "folder", "pipe", *links)})
    monkeypatch.setattr(image_decoding, "MAX_BYTES", 2_000_000)
    accepted, rejected = by_reason(outcome(FolderSource(root)))
    assert accepted == {"inside.png": ("text",), "ok.png": ("text",)}
    assert rejected == {
        "unsafe_path": ["away.png", "elsewhere"],
        "too_many_bytes": ["big.png"],
        "not_regular": ["folder.png", "nothing.png", "pipe.png"],
        "io_error": ["loop.png"],
    }


# ---- a table


def test_the_rows_of_one_image_are_its_captions(tmp_path):
    table = 'caption,image\n"a cat, asleep",p/a.png\na bee,./b.png\na cat,p/../p/a.png\n"a\nline",b.png\n'
    write(tmp_path, {"p/a.png": png(), "b.png": png(), "t.csv": table})
    captions = {"p/a.png": ("a cat, asleep", "a cat"), "b.png": ("a bee", "a\nline")}
    assert outcome(CsvSource(tmp_path / "t.csv")) == captions


def test_quotes_are_plain_characters_in_a_tab_separated_table(tmp_path):
    write(tmp_path, {"a.png": png(), "t.tsv": '\ufeffimage\tcaption\r\na.png\t"Quoted" and "not closed\r\n'})
    assert outcome(CsvSource(tmp_path / "t.tsv")) == {"a.png": ('"Quoted" and "not closed',)}


def test_columns_and_delimiter_are_settings(tmp_path):
    write(tmp_path, {"a.png": png(), "t.csv": "id;file;text\n1;a.png;one, two\n"})
    source = CsvSource(tmp_path / "t.csv", image_column="file", caption_column="text", delimiter=";")
    assert outcome(source) == {"a.png": ("one, two",)}


def test_bad_rows_are_rejected_one_by_one(tmp_path):
    write(tmp_path / "outside", {"x.png": png()})
    table = b"image,caption\na.png,ok\na.png,too,many\n\nb.png,\xff\ngone.png,text\n,text\n"
    table += b"../outside/x.png,text\n/etc/hostname,text\nonly one\nblank.png, \n"
    write(tmp_path / "own", {"a.png": png(), "b.png": png(), "blank.png": png(), "t.csv": table})
    accepted, rejected = by_reason(outcome(CsvSource(tmp_path / "own/t.csv")))
    assert accepted == {"a.png": ("ok",)}
    assert rejected == {
        "bad_row": ["line 3", "line 10"],
        "caption_encoding": ["b.png"],
        "missing_pair": ["gone.png", "line 7"],
        "unsafe_path": ["../outside/x.png", "/etc/hostname"],
        "caption_empty": ["blank.png"],
    }


# ---- WebDataset


def test_members_of_one_name_are_a_sample(tmp_path):
    write_tar(tmp_path / "b.tar", [("x/1.jpg", png(1)), ("x/1.cls", b"7"), ("x/1.txt", "one\nuno")])
    members = [("1.txt", "first"), ("2.png", png(2)), ("2.json", '{"caption": "two"}'), ("1.png", png(1))]
    members += [("3.webp", png(3)), ("3.json", '{"caption": ["three", "drei"]}')]
    write_tar(tmp_path / "a.tar", members)
    expected = {"a/1": ("first",), "a/2": ("two",), "a/3": ("three", "drei"), "b/x/1": ("one", "uno")}
    for path in (tmp_path, tmp_path / "*.tar"):
        assert outcome(WebDatasetSource(path)) == expected
    assert list(outcome(WebDatasetSource(tmp_path))) == list(expected)
    assert outcome(WebDatasetSource(tmp_path / "b.tar")) == {"b/x/1": ("one", "uno")}
    assert [pair.image for pair in WebDatasetSource(tmp_path)] == [png(1), png(2), png(3), png(1)]


def test_bad_members_are_rejected_and_do_not_affect_their_neighbors(tmp_path, monkeypatch):
    monkeypatch.setattr(image_decoding, "MAX_BYTES", 5_000)
    files = {"ok": png(), "../up": png(), "/abs": png(), "big": bytes(6_000), "twice": png()}
    odd = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
    odd["folder"] = tarfile.DIRTYPE
    records = {"bad": "{", "nocap": "{}", "list": '{"caption": [1]}', "half": '{"caption": "\\ud800"}'}
    members = [(f"{name}.png", data) for name, data in files.items()] + [("twice.png", png(1))]
    members += [odd_member(f"{name}.png", kind, "ok.png") for name, kind in odd.items()]
    members += [(f"{name}.txt", name.strip("./")) for name in (*files, *odd, "widow") if name != "folder"]
    members += [(f"{name}.png", png()) for name in (*records, "alone")]
    members += [(f"{name}.json", record) for name, record in records.items()]
    write_tar(tmp_path / "t.tar", [*members, ("._mac.png", b"junk"), ("README.md", "hello")])
    outcomes = outcome(WebDatasetSource(tmp_path))
    twice = next(key for key in outcomes if key.startswith("t/twice.png at byte"))
    accepted, rejected = by_reason(outcomes)
    assert accepted == {"t/ok": ("ok",), "t/twice": ("twice",)}
    assert rejected == {
        "unsafe_path": ["t/../up", "t//abs"],
        "not_regular": ["t/link", "t/hard", "t/device", "t/folder"],
        "too_many_bytes": ["t/big"],
        "missing_pair": ["t/widow", "t/nocap", "t/alone"],
        "duplicate_id": [twice],
        "caption_encoding": ["t/bad", "t/list", "t/half"],
    }


def small_tar(path: Path) -> bytes:
    parts = {"png": png(), "txt": "a cat"}
    members = [(f"{name}.{suffix}", data) for name in "abcdef" for suffix, data in parts.items()]
    return write_tar(path, members).read_bytes()


def test_a_tar_truncated_anywhere_is_never_read_as_a_shorter_one(tmp_path):
    path = tmp_path / "t.tar"
    data = small_tar(path)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024  # the used blocks and two zero blocks
    for length in np.random.default_rng(0).integers(0, end, 200):
        path.write_bytes(data[:length])
        with pytest.raises(SourceError, match="t.tar .*Fetch it again"):
            list(WebDatasetSource(path))


def test_a_flipped_bit_in_any_tar_header_is_noticed(tmp_path):
    path = tmp_path / "t.tar"
    data = small_tar(path)
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    rng = np.random.default_rng(0)
    for header in rng.choice(headers, 200):
        damaged = bytearray(data)
        damaged[header + rng.integers(512)] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match="t.tar .*Fetch it again"):
            WebDatasetSource(path).check()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_rejected_unread(tmp_path, kind):
    member = odd_member("long", kind)
    member.size = 1_000_000_000
    with open(tmp_path / "t.tar", "wb") as file:
        file.write(member.tobuf())
        file.truncate(512 + member.size + 1024)  # a sparse file: it takes no disk space
    tracemalloc.start()
    with pytest.raises(SourceError, match="t.tar is not a plain tar.*a header of 1,000,000,000 bytes at"):
        WebDatasetSource(tmp_path).check()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_long_name_is_a_key_like_any_other(tmp_path):
    name = "n" * 3000
    write_tar(tmp_path / "t.tar", [(f"{name}.png", png()), (f"{name}.txt", "text")])
    assert outcome(WebDatasetSource(tmp_path)) == {f"t/{name}": ("text",)}


def test_a_compressed_tar_is_rejected_by_name(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w:gz"):
        pass
    with pytest.raises(SourceError, match="t.tar is not a plain tar"):
        WebDatasetSource(tmp_path).check()


# ---- img2dataset


def img2dataset(folder: Path, samples: list[tuple[bytes | None, str, dict]], stats: str) -> Path:
    """A tar as img2dataset writes it, with .jpg, .txt and .json, and the files beside it: a table and the counts."""
    members = []
    for number, (image, caption, record) in enumerate(samples):
        files = {"jpg": image, "txt": caption, "json": json.dumps({"caption": caption, **record})}
        members += [(f"{number:09d}.{suffix}", data) for suffix, data in files.items() if data is not None]
    write(folder, {"00000.parquet": b"PAR1", "00000_stats.json": stats})
    write_tar(folder / "00000.tar", members)
    return folder


def test_tars_of_img2dataset_are_read_with_their_failed_downloads(tmp_path):
    failed = {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    samples = [(png(), "a cat", {"status": "success", "url": "u", "error_message": None})]
    samples += [(None, "a bee", failed), (png(), "", {"status": "success"})]
    source = WebDatasetSource(img2dataset(tmp_path / "laion", samples, '{"count": 3, "successes": 2}'))
    assert list(outcome(source).values()) == [("a cat",), "missing_pair", "caption_empty"]
    assert details(source)["00000/000000001"] == "missing_pair: failed_to_download: HTTP Error 404: Not Found"


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        (
            '{"successes": 9}',
            "00000.tar has 1 images, but img2dataset wrote 9, according to its _stats.json.",
        ),
        ('{"successes": 1', r"00000_stats.json cannot be read \(.*\). Fetch it again, or remove it"),
    ],
)
def test_a_tar_that_does_not_match_its_stats_file_stops_the_run(tmp_path, stats, message):
    folder = img2dataset(tmp_path / "laion", [(png(), "a cat", {"status": "success"})], stats)
    for read in (WebDatasetSource.check, list):
        with pytest.raises(SourceError, match=message):
            read(WebDatasetSource(folder))
