"""Sources behind a URL give what the same files give on this machine; and a network that fails is never bad data."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pictures import details, outcome, png, write, write_tar
from thousandwords import pairs
from thousandwords.images import Refused
from thousandwords.pair_shards import PairReader
from thousandwords.sources import (
    CocoSource,
    FolderSource,
    JsonLinesSource,
    ParquetSource,
    Source,
    SourceError,
    TableSource,
    WebDatasetSource,
    _places,
)
from thousandwords.sources._contract import read_ahead

READERS = {
    "folder": lambda root: FolderSource(f"{root}/folder"),
    "csv": lambda root: TableSource(f"{root}/folder/t.csv"),
    "jsonl": lambda root: JsonLinesSource(f"{root}/lists/l.jsonl", image_folder="../folder"),
    "coco": lambda root: CocoSource(f"{root}/lists/c.json", image_folder="../folder"),
    "parquet": lambda root: ParquetSource(f"{root}/parquet"),
    "parquet of paths": lambda root: ParquetSource(f"{root}/lists/p.parquet", image_folder="../folder"),
    "webdataset": lambda root: WebDatasetSource(f"{root}/tars"),
    "one tar": lambda root: WebDatasetSource(f"{root}/tars/b.tar"),
    "tars by a pattern": lambda root: WebDatasetSource(f"{root}/tars/*.tar"),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """The same few pictures in every form, with something amiss in each."""
    root = tmp_path_factory.mktemp("own")
    write(
        root / "folder",
        {
            "a.png": png(1),
            "a.txt": "a cat\ntwo",
            "sub/b c é.png": png(2),
            "sub/b c é.txt": "a bee",
            "d.png": png(3),
            "lone.txt": "x",
            "z.png": b"",
            "z.txt": "z",
            ".hidden.png": b"",
            "t.csv": "image,caption\na.png,a cat\nsub/b c é.png,a bee\n../parquet/x.png,x\nsub,folder\ngone.png,x\n",
        },
    )
    lines = [{"image": "a.png", "caption": "a cat"}, {"image": "sub/b c é.png", "caption": ["a bee"]}, {"image": "../x.png"}]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}]
    annotations = [{"image_id": 1, "caption": "a cat"}, {"image_id": 2, "caption": "x"}, {"image_id": 1, "caption": "a tom"}]
    write(
        root / "lists",
        {
            "l.jsonl": "\n".join(map(json.dumps, lines)) + "\n{",
            "c.json": json.dumps({"images": images, "annotations": annotations}),
        },
    )
    for number, folder in enumerate(("parquet", "parquet", "lists")):
        image = pa.array(["a.png", "../up.png"]) if folder == "lists" else pa.array([png(number), None])
        (root / folder).mkdir(exist_ok=True)
        name = "p" if folder == "lists" else number
        pq.write_table(pa.table({"image": image, "caption": pa.array(["a cat", "x"])}), root / folder / f"{name}.parquet")
    (root / "tars").mkdir()
    for number, name in enumerate("ba"):
        write_tar(root / f"tars/{name}.tar", [("1.png", png(number)), ("1.txt", name), ("2.png", png(9)), ("3.txt", "x")])
    write(root, {"tars/b_stats.json": '{"successes": 2}', "tars/notes.txt": "x"})
    return root


def copy_to(url: str, root: Path) -> str:
    files, path = fsspec.core.url_to_fs(url)
    for file in sorted(root.rglob("*")):
        if file.is_file():
            files.pipe_file(f"{path}/{file.relative_to(root).as_posix()}", file.read_bytes())
    return url


@pytest.fixture(scope="module")
def memory(own) -> str:
    return copy_to("memory://thousandwords/own", own)


@pytest.fixture(scope="module")
def s3(own):
    """An S3 stand-in on loopback, and the same files in it."""
    server_of = pytest.importorskip(
        "moto.server", reason="the S3 stand-in is not installed: pip install 'moto[s3]' flask flask-cors"
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'thousandwords[s3]'")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    wanted = {
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    fsspec.core.url_to_fs("s3://pictures")[0].mkdir("pictures")
    yield copy_to("s3://pictures/own set", own)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


def everything(source: Source) -> list[tuple]:
    return [(pair.key, pair.image, pair.captions, pair.provenance, str(pair.problem)) for pair in source]


def assert_the_same(far: Source, near: Source) -> None:
    assert everything(far) == everything(near)
    assert everything(far) == everything(far)


@pytest.mark.parametrize("kind", READERS)
def test_a_url_gives_what_a_folder_gives(memory, own, kind):
    far, near = READERS[kind](memory), READERS[kind](own)
    assert_the_same(far, near)
    assert 0.5 < far.check() / near.check() <= 1
    assert any(pair.problem for pair in near) and not all(pair.problem for pair in near)


@pytest.mark.parametrize("kind", READERS)
def test_s3_gives_what_a_folder_gives(s3, own, kind):
    far, near = READERS[kind](s3), READERS[kind](own)
    assert_the_same(far, near)
    assert 0.5 < far.check() / near.check() <= 1


def test_pairs_are_written_from_s3_as_from_a_folder(s3, own, tmp_path):
    settings = {"source": "folder", "image_size": 16, "validation_share": 0.5, "max_refused_share": 0.9}
    pairs.write_pairs(pairs.Config(path=f"{own}/folder", **settings), 1, tmp_path / "near")
    pairs.write_pairs(pairs.Config(url=f"{s3}/folder", version="May", **settings), 1, tmp_path / "far")
    near, far = (PairReader(tmp_path / name, "train") for name in ("near", "far"))
    rows = range(len(near))
    assert len(near) == len(far) >= 1
    assert [(near.key(row), near.captions(row)) for row in rows] == [(far.key(row), far.captions(row)) for row in rows]
    assert (near.images(rows) == far.images(rows)).all()


def test_a_whole_bucket_and_odd_names_are_read(s3):
    files = fsspec.core.url_to_fs("s3://odd")[0]
    files.mkdir("odd")
    for name in ("a[1]*?.png", "100%20.png", "#.png"):
        files.pipe_file(f"odd/{name}", png())
        files.pipe_file(f"odd/{name[:-3]}txt", b"text")
    files.pipe_file("odd/empty/", b"")
    assert outcome(FolderSource("s3://odd")) == {"#.png": ("text",), "100%20.png": ("text",), "a[1]*?.png": ("text",)}
    files.pipe_file("odd/t.csv", b"image,caption\na[1]*?.png,text\n")
    assert outcome(TableSource("s3://odd/t.csv")) == {"a[1]*?.png": ("text",)}
    assert WebDatasetSource("s3://odd").tars == []


def test_inputs_that_are_read_side_by_side_come_in_their_order_and_a_few_at_a_time():
    under_way, most = set(), []

    def read(number: int) -> int:
        under_way.add(number)
        most.append(len(under_way))
        time.sleep(0.004 * (number % 3))
        under_way.discard(number)
        return number

    assert list(read_ahead(read, range(60), 8)) == list(range(60))
    assert 1 < max(most) <= 8


def test_a_missing_bucket_is_refused_with_the_mend(s3):
    with pytest.raises(SourceError, match="data.url: there is no folder s3://nobody/own. Make it, or name another"):
        FolderSource("s3://nobody/own").check()


def test_files_by_a_file_url_are_files_of_this_machine(own, tmp_path):
    (tmp_path / "away.png").symlink_to(own / "folder/a.png")
    write(tmp_path, {"away.txt": "x"})
    assert outcome(FolderSource(f"file://{tmp_path}")) == {"away.png": "unsafe_path"}


def test_nothing_outside_the_url_is_ever_read(memory):
    place = _places.place_of(f"{memory}/folder")
    for name in ("../lists/c.json", "/thousandwords/own/lists/c.json", "sub/../../lists/c.json", ".."):
        with pytest.raises(Refused, match="unsafe_path: .* leads out of folder"):
            place.read(name, 1_000_000)
    assert details(TableSource(f"{memory}/folder/t.csv"))["../parquet/x.png"] == "unsafe_path: x.png leads out of folder"


def test_a_file_over_the_limit_is_not_fetched(memory, monkeypatch):
    monkeypatch.setattr(_places, "MAX_BYTES", 1_000)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", None)
    with pytest.raises(Refused, match="too_many_bytes: 3,.* bytes; the limit is 1,000"):
        _places.place_of(f"{memory}/folder").picture("a.png")


def test_a_network_that_fails_stops_the_run_and_is_no_bad_picture(memory, monkeypatch):
    class Weather(Exception):
        pass

    sound = fsspec.get_filesystem_class("memory").cat_file

    def cat_file(self, path, *arguments, **settings):
        if path.endswith("d.png"):
            raise Weather("connection reset")
        return sound(self, path, *arguments, **settings)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", cat_file)
    with pytest.raises(
        SourceError,
        match=r"own/folder/d.png could not be fetched \(Weather: connection reset\). Look at the network "
        "and at the credentials in the environment, then run it again",
    ):
        list(FolderSource(f"{memory}/folder"))


def test_copies_are_gone_when_they_are_read(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(list(WebDatasetSource(f"{memory}/tars"))) == 6
    assert not list(tmp_path.iterdir())


def test_a_tar_behind_a_url_that_was_cut_is_named_by_its_url(memory):
    files, path = fsspec.core.url_to_fs(f"{memory}/cut")
    files.pipe_file(f"{path}/c.tar", files.cat_file(path.replace("cut", "tars/b.tar"))[:1500])
    with pytest.raises(
        SourceError, match=r"memory://thousandwords/own/cut/c.tar (is no plain tar, or )?was cut short .*Fetch it again"
    ):
        WebDatasetSource(f"{memory}/cut").check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "nonsense://host/x",
            "nonsense://host/x cannot be opened .*. Set data.url to one that fsspec knows, like s3://bucket/folder",
        ),
        ("ftp://me:secret@host/x", "data.url holds a password, which would be written down with the data. Leave it out"),
        ("memory://nowhere/x", "data.url: there is no folder memory://nowhere/x. Make it, or name another"),
    ],
)
def test_a_url_of_no_use_is_refused_with_the_mend(url, message):
    with pytest.raises(SourceError, match=message) as caught:
        FolderSource(url).check()
    assert "secret" not in str(caught.value)


def test_a_protocol_without_its_package_says_what_to_install(monkeypatch):
    def url_to_fs(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(
        SourceError, match=r"s3://b/x needs a package that is not installed. Install it: pip install 'thousandwords\[s3\]'"
    ):
        FolderSource("s3://b/x")
    with pytest.raises(SourceError, match="gs://b/x needs a package that is not installed. Install it: Install s3fs"):
        FolderSource("gs://b/x")
