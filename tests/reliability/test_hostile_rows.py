"""Hostile or unusual inputs in whole runs; bench/reliability.md lists the tests of all cases."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import socket
import stat
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages import prepare_pairs
from tests.helpers.images import details, encoded, noise, odd_member, outcome, png, write, write_tar
from tests.helpers.sources import files_of, write_folder
from tests.helpers.tiny_models import TEXT_LENGTH, flipped, tiny_text
from tests.pipeline.test_data_stages import stage
from tests.unit.data.test_images import BAD_BYTES
from thousandwords.core.config import section
from thousandwords.core.errors import InvalidInput
from thousandwords.core.manifest import read_manifest
from thousandwords.data import image_decoding
from thousandwords.ingest import caption_filter
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.counts import OUTCOMES
from thousandwords.ingest.ingest import write_pairs
from thousandwords.ingest.records import QUARANTINE
from thousandwords.ingest.sources import (
    CsvSource,
    FolderSource,
    JsonLinesSource,
    ParquetSource,
    WebDatasetSource,
    local_folder,
)
from thousandwords.ingest.sources.base import SourceError, clean_captions, key_of


def config(source: str, path: Path, **settings: object) -> DataConfig:
    common = {"image_size": 16, "validation_share": 0.3, "max_refused_share": 0.9, "workers": 1}
    return section({"source": source, "path": str(path), **common, **settings}, "data", DataConfig)


def good_samples(count: int) -> list[tuple[str, bytes | str]]:
    """Members of a tar: 0.png, 0.txt, ..."""
    pairs = [((f"{n}.png", encoded(noise(seed=n))), (f"{n}.txt", "text")) for n in range(count)]
    return list(itertools.chain(*pairs))


def adds_up(counts: dict) -> bool:
    return counts["n_in"] == sum(counts[outcome] for outcome in OUTCOMES)


def quarantined(folder: Path) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(folder / QUARANTINE).to_pylist()}


BAD_IMAGES = [  # bytes and reason, besides those of tests.unit.data.test_images
    *BAD_BYTES,
    (encoded(noise(), "JPEG")[:-2], "truncated"),
    (encoded(noise())[:500], "truncated"),
    (flipped(encoded(noise()), 500, 2), "corrupt_data"),
    (flipped(encoded(noise()), len(encoded(noise())) - 13, 2), "corrupt_data"),  # the checksum of IDAT
    (encoded(noise(1, 1)), "too_small"),
    (encoded(noise(31, 40)), "too_small"),
    (encoded(noise(40, 130)), "bad_aspect"),
    (encoded(Image.fromarray(np.full((32, 32), -1, np.float32)), "TIFF"), "bad_mode"),
]


def test_every_bad_image_is_one_row_of_the_quarantine_and_affects_no_other(tmp_path):
    own = write_folder(tmp_path / "own")
    write_pairs(config("folder", own), 0, tmp_path / "without")
    bad = {f"00-{number:02d}.png": case for number, case in enumerate(BAD_IMAGES)}  # between the valid ones
    for name, (data, _) in bad.items():
        write(own, {name: data, name.replace("png", "txt"): "text"})
    write(own, {"blank.png": png(1), "blank.txt": " ", "lone.png": png(2), "text only.txt": "no image"})
    write(own, {"copy.png": (own / "000.png").read_bytes(), "copy.txt": (own / "000.txt").read_bytes()})
    counts = write_pairs(config("folder", own), 0, tmp_path / "with")

    assert adds_up(counts) and counts["n_in"] == 12 + len(bad) + 4
    assert (counts["n_ok"], counts["n_duplicate"], counts["n_filtered"]) == (12, 1, 3)
    expected = {name: reason for name, (_, reason) in bad.items()}
    expected |= {"blank.png": "caption_empty", "lone.png": "missing_pair", "text only.txt": "missing_pair"}
    rows = quarantined(tmp_path / "with")
    assert {name: row["reason"] for name, row in rows.items()} == expected
    assert counts["reasons"] == Counter(expected.values())
    for name, (data, _) in bad.items():
        found = [rows[name][column] for column in ("source", "sha256", "byte_size")]
        assert found == [f"own/{name}", hashlib.sha256(data).hexdigest(), len(data)]
        assert 0 < len(rows[name]["detail"]) <= 500
    alone = rows["text only.txt"]
    assert (alone["source"], alone["sha256"], alone["byte_size"]) == ("own/text only.txt", None, None)
    assert alone["detail"] == "there is no image beside text only.txt"
    clean, mixed = files_of(tmp_path / "without"), files_of(tmp_path / "with")
    assert all(mixed[name] == data for name, data in clean.items() if name.startswith(("train", "valid")))


def test_formats_and_flags_are_counted_by_content(tmp_path, capsys):
    """A PNG named .jpg, animations of three formats, bad profiles of two, and one image with both."""
    own, frames = write_folder(tmp_path / "own"), [Image.fromarray(noise(seed=seed)) for seed in range(5)]
    moving, bad = {"save_all": True, "append_images": frames[3:]}, {"icc_profile": b"no profile at all"}
    odd = {
        "moving.gif": encoded(frames[0], "GIF", **moving),
        "moving.webp": encoded(frames[1], "WEBP", **moving),
        "moving.png": encoded(frames[2], **moving),
        "named.jpg": encoded(noise(seed=20)),
        "still.webp": encoded(noise(seed=21), "WEBP"),
        "both.webp": encoded(frames[3], "WEBP", save_all=True, append_images=frames[:1], **bad),
        "profile.jpg": encoded(noise(seed=22), "JPEG", **bad),
        "copy.jpg": encoded(noise(seed=22), "JPEG", **bad),
    }
    for name, data in odd.items():
        write(own / name.replace(".", "-"), {name: data, f"{Path(name).stem}.txt": "text"})
    data = {"source": "folder", "path": str(own), "image_size": 16, "workers": 1, "validation_share": 0.3}
    context = stage("prepare_pairs", data=data)
    prepare_pairs.prepare_pairs(tmp_path / "pairs", context)

    counts = read_manifest(tmp_path / "pairs")["facts"]["counts"]
    assert counts["formats"] == {"PNG": 14, "WEBP": 3, "GIF": 1, "JPEG": 1} and counts["n_duplicate"] == 1
    assert counts["flags"] == {"animated": 4, "bad_icc_profile": 2}
    assert context.tracker.figures["flags/animated"] == 4
    assert capsys.readouterr().err.endswith(
        "prepare_pairs: of the 19 accepted images 4 are animated (the first frame is used), "
        "2 have a bad color profile (it is ignored)\n"
    )


SHARDS = {  # of two tars: n_in and outcomes
    "0.tar": dict(zip(("n_in", *OUTCOMES), (6, 6, 0, 0, 0), strict=True)),
    "1.tar": dict(zip(("n_in", *OUTCOMES), (5, 1, 2, 1, 1), strict=True)),
}


def two_tars(folder: Path) -> Path:
    """Six valid samples in one tar; in the other one valid, one cut, one without a caption, one small, a copy."""
    odd = {"a": noise(seed=9), "b": noise(), "c": noise(8, 8), "d": noise(seed=0)}
    members = [
        (f"{name}.png", encoded(pixels)[: 300 if name == "b" else None]) for name, pixels in odd.items()
    ]
    folder.mkdir()
    write_tar(folder / "0.tar", good_samples(6))
    write_tar(folder / "1.tar", [*members, ("e.png", png()), *((f"{name}.txt", "text") for name in odd)])
    return folder


def test_outcomes_are_counted_for_each_file_of_many_pairs(tmp_path):
    tars = two_tars(tmp_path / "tars")
    counts = write_pairs(config("webdataset", tars), 0, tmp_path / "pairs")
    assert counts["by_shard"] == SHARDS == read_manifest(tmp_path / "pairs")["facts"]["counts"]["by_shard"]

    rows = [(encoded(noise(seed=20 + number)), f"row {number}") for number in range(2)]
    images, captions = zip(*rows, (b"cut", "x"), (png(9), None), strict=True)
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "rows/b.parquet")
    sources = [
        {"source": "webdataset", "path": str(tars)},
        {"source": "parquet", "path": str(tmp_path / "rows")},
        {"source": "folder", "path": str(write_folder(tmp_path / "own"))},
    ]
    counts = write_pairs(config("mixture", tmp_path, sources=sources), 0, tmp_path / "mixture")
    assert list(counts["by_shard"]) == ["0/0.tar", "0/1.tar", "1/b.parquet"]
    assert counts["by_shard"]["0/1.tar"] == SHARDS["1.tar"]
    assert list(counts["by_shard"]["1/b.parquet"].values()) == [4, 2, 2, 0, 0]
    assert adds_up(counts)
    assert sum(shard["n_in"] for shard in counts["by_shard"].values()) == counts["n_in"] - 12


def source_with_sha256(kind: str, folder: Path, images: dict[str, bytes], digests: list[object]):
    """A source of these images with a column of sha256 values."""
    write(folder, images)
    rows = [{"image": name, "caption": name, "sum": sum_} for name, sum_ in zip(images, digests, strict=True)]
    if kind == "csv":
        lines = [",".join(str(value or "") for value in row.values()) for row in rows]
        write(folder, {"t.csv": "\n".join(["image,caption,sum", *lines])})
        return CsvSource(folder / "t.csv", sha256_column="sum")
    if kind == "jsonl":
        write(folder, {"t.jsonl": "\n".join(map(json.dumps, rows))})
        return JsonLinesSource(folder / "t.jsonl", sha256_column="sum")
    if kind == "webdataset":
        sidecars = [(f"{row['image'][0]}.json", json.dumps(row)) for row in rows]
        tar = write_tar(folder / "t.tar", sorted([*images.items(), *sidecars]))
        return WebDatasetSource(tar, sha256_column="sum")
    if kind == "parquet of bytes":
        rows = [{**row, "image": images[row["image"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return ParquetSource(folder / "t.parquet", sha256_column="sum")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet of paths", "parquet of bytes", "webdataset"])
def test_an_image_with_another_sha256_than_its_source_says_is_rejected(tmp_path, kind):
    valid = encoded(noise(), "JPEG")
    other = flipped(valid, len(valid) - 200, 2)
    digest = hashlib.sha256(valid).hexdigest()
    images = {"a.jpg": valid, "b.jpg": other, "c.jpg": other, "d.jpg": valid, "e.jpg": valid}
    digests = [digest, digest, None, digest.upper(), "sha256 unknown"]
    pairs = list(source_with_sha256(kind, tmp_path, images, digests))

    reasons = [pair.problem and pair.problem.reason for pair in pairs]
    assert reasons == [None, "hash_mismatch", None, None, "bad_row"]
    assert pairs[1].image == other  # the quarantine needs it
    found = hashlib.sha256(other).hexdigest()
    assert str(pairs[1].problem) == f"hash_mismatch: its sha256 should be {digest}, found {found}"


def test_rows_with_different_sha256_values_of_one_image_reject_it(tmp_path):
    digest = hashlib.sha256(png()).hexdigest()
    lines = ["image,caption,sha256", f"a.png,one,{digest}", f"a.png,two,{'0' * 64}"]
    lines += [f"b.png,one,{digest}", "b.png,two,"]
    write(tmp_path, {"a.png": png(), "b.png": png(), "t.csv": "\n".join(lines)})
    source = CsvSource(tmp_path / "t.csv", sha256_column="sha256")
    assert outcome(source) == {"a.png": "hash_mismatch", "b.png": ("one", "two")}


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        (CsvSource, "t.csv", "no column 'NAME', only 'image', 'caption'. Set data.SETTING"),
        (JsonLinesSource, "t.jsonl", "no line with the key 'NAME', only 'caption', 'image'. Set data."),
        (ParquetSource, "t.parquet", "no column 'NAME', only 'image', 'caption', 'number'. Set data.SETTING"),
        (ParquetSource, "t.parquet", "column 'number' holds int64, not text.*Set data.SETTING"),
        (WebDatasetSource, "t.tar", "have no .json with 'NAME'. Set data.SETTING to the key"),
    ],
)
@pytest.mark.parametrize("setting", ["sha256_column", "recaption_column"])
def test_a_missing_column_is_rejected_with_the_fix(tmp_path, kind, file, message, setting):
    lines = {"t.csv": "image,caption\na.png,a", "t.jsonl": '{"image": "a.png", "caption": "a"}'}
    write(tmp_path, {"a.png": png(), **lines})
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["a"], "number": [7]}), tmp_path / "t.parquet")
    write_tar(tmp_path / "t.tar", [("a.png", png()), ("a.json", '{"caption": "a"}')])
    name = "sum" if "NAME" in message else "number"
    with pytest.raises(SourceError, match=message.replace("NAME", name).replace("SETTING", setting)):
        kind(tmp_path / file, **{setting: name}).check()


def make_large(path: Path) -> None:
    path.touch()
    swell(path)  # a sparse file: it takes no disk space


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)  # the path of a socket has at most 107 bytes


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which has no end
    except PermissionError:
        pytest.skip("only root may make devices")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_large, "too_many_bytes"),
        (os.mkfifo, "not_regular"),
        (make_socket, "not_regular"),
        (make_device, "not_regular"),
        (os.mkdir, "not_regular"),
    ],
)
def test_files_that_are_not_regular_are_rejected_at_once_in_every_source(tmp_path, make, reason):
    lists = {
        "t.csv": "image,caption\na.png,a\nodd.png,text",
        "l.jsonl": '{"image": "a.png", "caption": "a"}\n{"image": "odd.png", "caption": "text"}',
    }
    write(tmp_path, {"a.png": png(), "a.txt": "a", "odd.txt": "text", **lists})
    make(tmp_path / "odd.png")
    sources = (FolderSource(tmp_path), CsvSource(tmp_path / "t.csv"), JsonLinesSource(tmp_path / "l.jsonl"))
    for source in sources:
        started = time.monotonic()
        assert outcome(source) == {"a.png": ("a",), "odd.png": reason}
        assert time.monotonic() - started < 1


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Drop the rights of root, who may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_file_without_read_permission_is_an_io_error(tmp_path, monkeypatch):
    names = ("a", "b", "c", "closed/d")
    own = write(tmp_path / "own", {f"{name}.{end}": png() for name in names for end in ("png", "txt")})
    write(own, {"a.txt": "a"})
    for name in ("b.png", "c.txt", "closed"):
        (own / name).chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above are not readable for others
    with without_root():
        unreadable = dict.fromkeys(("b.png", "c.png", "closed"), "io_error")
        assert outcome(FolderSource("own")) == {"a.png": ("a",), **unreadable}
        assert details(FolderSource("own"))["b.png"] == "io_error: b.png: Permission denied"
    (own / "closed").chmod(0o700)


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")
    os.utime(path, (1, 1))  # file system clocks are coarse: the length alone must show it


def shrink(path: Path) -> None:
    os.truncate(path, 100)


def swell(path: Path) -> None:
    os.truncate(path, image_decoding.MAX_BYTES + 1)


def rewrite(path: Path) -> None:
    path.write_bytes(png(1))


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("moment", "change", "problem"),
    [
        ("_open_nonblocking", become_a_pipe, "io_error: a.png changed while it was read"),
        ("_open_nonblocking", swell, "io_error: a.png changed while it was read"),
        ("_open_nonblocking", become_a_link, "io_error: a.png: Too many levels of symbolic links"),
        ("_open_nonblocking", Path.unlink, "missing_pair: there is no a.png"),
        ("_read_up_to", grow, "io_error: a.png changed while it was read"),
        ("_read_up_to", shrink, "io_error: a.png changed while it was read"),
        ("_read_up_to", rewrite, "io_error: a.png changed while it was read"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_an_io_error(tmp_path, monkeypatch, moment, change, problem):
    """`moment` is the step of reading before which the file changes."""
    write(tmp_path, {"a.png": png(), "a.txt": "a"})
    os.utime(tmp_path / "a.png", (1, 1))
    step = getattr(local_folder, moment)

    def meanwhile(*arguments):
        is_unchanged = (tmp_path / "a.png").exists() and os.lstat(tmp_path / "a.png").st_mtime == 1
        if is_unchanged and "a.txt" not in str(arguments[0]):
            change(tmp_path / "a.png")
        return step(*arguments)

    monkeypatch.setattr(local_folder, moment, meanwhile)
    assert details(FolderSource(tmp_path)) == {"a.png": problem}


def name_of(key: str) -> bytes:
    """The name that a key was made from."""
    parts = re.findall(r"\\\\|\\x..|[^\\]+", key)
    return b"".join(
        b"\\" if part == "\\\\" else bytes.fromhex(part[2:]) if part[0] == "\\" else part.encode()
        for part in parts
    )


@given(st.binary(min_size=1) | st.text(min_size=1).filter(lambda name: name.isprintable()).map(str.encode))
def test_a_key_gives_back_the_name(name):
    assert name_of(key_of(os.fsdecode(name))) == name


NAMES = [
    b"caf\xe9", "caf\u00e9".encode(), "cafe\u0301".encode(), b"caf\\xe9", b"new\nline", b"x" * 251, b"Case", b"case",
    b"a..b", b"~..", b"\xff\xfe", b"a\tb", "\u202egnp".encode(), b"--", b"%00", b"*", b"'\"`$(x)",
]  # fmt: skip


def test_names_of_every_kind_have_different_keys(tmp_path):
    own = write_folder(tmp_path / "own")
    for number, name in enumerate(NAMES):
        for suffix, data in ((b".png", encoded(noise(seed=100 + number))), (b".txt", b"text")):
            Path(os.fsdecode(os.path.join(os.fsencode(own), name + suffix))).write_bytes(data)
    counts = write_pairs(config("folder", own), 0, tmp_path / "pairs")

    assert counts["n_in"] == counts["n_ok"] == 12 + len(NAMES)
    plain = [f"{number:03d}".encode() for number in range(12)]
    expected = sorted(name + b".png" for name in (*plain, *NAMES))
    assert sorted(map(name_of, rows_of(tmp_path / "pairs"))) == expected


LONG = {
    "1 MB": "x" * 1_000_000,
    "10,000 words": "a cat " * 10_000,
    "50,000 combining marks": "e" + "\u0301" * 50_000,
    "50,000 marks out of order": "e" + "\u0345\u0301\u0316\u0334" * 12_500,
    "a million lines": "a\n" * 500_000,
    "the maximum of marks": "e" + "\u0345" * 1000 + "\u0301" * 1000 + "\u0316" * 1000 + "\u0334" * 999,
    "the maximum of emoji": "\U0001f469" * 4000,
}


def seconds_of(work, *arguments: object) -> float:
    """The best of three, because other processes use this machine."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        work(*arguments)
        seconds.append(time.process_time() - started)
    return min(seconds)


def accepted_captions(caption: str) -> list[str]:
    """The captions that stay of a caption file."""
    rules = caption_filter.CaptionRules(min_words=1, boilerplate=("^photo",))
    try:
        return list(caption_filter.filter_captions(clean_captions(caption.split("\n")), rules)[0])
    except InvalidInput as problem:
        assert problem.reason == "caption_too_long"
        return []


@pytest.mark.parametrize("kind", LONG)
def test_no_caption_takes_long(kind):
    captions = accepted_captions(LONG[kind])
    assert bool(captions) == (len(LONG[kind].partition("\n")[0]) <= 4000)
    assert seconds_of(accepted_captions, LONG[kind]) < 0.1
    text_tokenizer = tiny_text()
    assert seconds_of(text_tokenizer.encode, captions) < 0.1
    assert text_tokenizer.encode(captions).shape == (len(captions), TEXT_LENGTH)


def test_caption_files_that_are_too_long_are_rejected_in_tars_too(tmp_path):
    long = "x" * 1_048_576
    members = [(f"{name}.png", png()) for name in "abcd"] + [("a.txt", long), ("d.txt", "see")]
    for name, caption in (("b", long), ("c", long[:900_000])):
        members.append((f"{name}.json", json.dumps({"caption": caption})))
    write_tar(tmp_path / "t.tar", members)
    too_long = dict.fromkeys(("t/a", "t/b", "t/c"), "caption_too_long")
    assert outcome(WebDatasetSource(tmp_path)) == {**too_long, "t/d": ("see",)}


def repeating_tar(path: Path) -> Path:
    """Repeated samples: complete, in part, with another image, with another caption, and a third time."""
    first, second, third = (("png", encoded(noise(seed=seed))) for seed in (1, 2, 3))
    a, b, c, sea = (("txt", text) for text in ("a", "b", "c", "sea"))
    before = [("a", first), ("a", a), ("b", second), ("c", third)]
    after = [("b", b), ("c", c), ("a", first), ("a", a), ("b", second)]
    after += [("b", first), ("c", sea), ("a", a), ("c", third)]

    def members(parts: list) -> list[tuple[str, bytes | str]]:
        return [(f"{name}.{suffix}", data) for name, (suffix, data) in parts]

    return write_tar(path, [*members(before), *good_samples(8), *members(after)])


def test_a_repeated_sample_is_a_duplicate_and_a_different_one_is_rejected(tmp_path):
    counts = write_pairs(config("webdataset", repeating_tar(tmp_path / "t.tar")), 0, tmp_path / "pairs")
    assert adds_up(counts)
    assert (counts["n_in"], counts["n_ok"], counts["n_duplicate"]) == (16, 11, 3)
    assert counts["reasons"] == {"duplicate_id": 2}
    rejected = quarantined(tmp_path / "pairs").values()
    assert {row["detail"] for row in rejected} == {
        "the tar has 'b.png' a second time, with other bytes",
        "the tar has 'c.txt' a second time, with other bytes",
    }


def test_the_first_of_equal_names_is_used_for_any_number_of_workers(tmp_path):
    tar = repeating_tar(tmp_path / "t.tar")
    for workers in (1, 3):
        write_pairs(config("webdataset", tar, workers=workers), 0, tmp_path / str(workers))
    assert files_of(tmp_path / "3") == files_of(tmp_path / "1")
    rows = rows_of(tmp_path / "1")
    assert [rows[f"t/{name}"]["captions"] for name in "abc"] == [["a"], ["b"], ["c"]]


def test_a_sparse_member_is_rejected(tmp_path):
    info = odd_member("hole.png", tarfile.GNUTYPE_SPARSE)
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000001000\0"  # 512 bytes at 0
    header[483:495] = b"77777777777\0"  # of 8 GB in all
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar = write_tar(tmp_path / "t.tar", [("a.png", png()), ("a.txt", "a"), ("hole.txt", "hole")])
    tar.write_bytes(bytes(header) + bytes(512) + tar.read_bytes())
    assert outcome(WebDatasetSource(tmp_path)) == {"t/hole": "not_regular", "t/a": ("a",)}


def rows_of(folder: Path) -> dict[str, dict]:
    """{key: row} of all pair shards."""
    tables = [pq.read_table(path).to_pylist() for path in folder.glob("[tv]*.parquet")]
    return {row["key"]: row for rows in tables for row in rows}


def everything_below(folder: Path) -> dict[Path, tuple[int, int]]:
    """{path: (mode, size)} of all files and links."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path: (path.lstat().st_mode, path.lstat().st_size) for path in paths}


def test_no_member_of_a_tar_is_written_anywhere(tmp_path, monkeypatch):
    work = tmp_path / "a/b/c"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(work))
    members = [*good_samples(8), odd_member("out", tarfile.SYMTYPE, str(tmp_path))]
    for name in ("../up", f"{tmp_path}/abs", "out/through"):
        members += [(f"{name}.png", png()), (f"{name}.txt", name)]
    members += [odd_member("hard.png", tarfile.LNKTYPE, "../../secret"), ("hard.txt", "hard")]
    write_tar(work / "t.tar", [*members, odd_member("pipe.png", tarfile.FIFOTYPE)])
    before = everything_below(tmp_path)
    counts = write_pairs(config("webdataset", work / "t.tar"), 0, work / "pairs")

    assert adds_up(counts) and counts["reasons"] == {"unsafe_path": 2, "not_regular": 2}
    assert counts["n_ok"] == 9  # out/through is only a name
    after = everything_below(tmp_path)
    assert all(path.parent == work / "pairs" for path in after.keys() - before.keys())
    assert before.items() <= after.items()


def test_archives_are_never_unpacked(tmp_path):
    """Neither beside images, nor instead of images, nor nested."""
    inner, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(40_000_000))
    zip_, gz = packed.getvalue(), inner.getvalue()
    assert len(zip_) < 42_000
    own = write_folder(tmp_path / "own")
    write(own, {"bomb.zip": zip_, "bomb.png": zip_, "bomb.txt": "x"})
    write(own, {"inner.tar.gz": gz, "gz.png": gz, "gz.txt": "x"})
    counts = write_pairs(config("folder", own), 0, tmp_path / "folder")
    assert (counts["n_in"], counts["n_ok"], counts["reasons"]) == (14, 12, {"not_an_image": 2})

    archives = [("a.zip", zip_), ("nested.tar", gz), ("nested.zip", zip_), ("b.json.gz", gz)]
    write_tar(tmp_path / "t.tar", [("a.png", png()), ("a.txt", "a"), *archives])
    assert outcome(WebDatasetSource(tmp_path / "t.tar")) == {"t/a": ("a",)}
