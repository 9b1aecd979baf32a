"""Sources in an S3 stand-in give the same pairs as local files."""

import os
from pathlib import Path

import fsspec
import pytest

from tests.helpers.images import outcome, png
from tests.helpers.sources import READERS, assert_same_pairs, copy_to, write_sources
from thousandwords.data.pair_shards import PairReader
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.sources import CsvSource, FolderSource, WebDatasetSource
from thousandwords.ingest.sources.base import SourceError


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return write_sources(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def s3(own):
    """An S3 stand-in on loopback, and the same files in it."""
    server_of = pytest.importorskip(
        "moto.server", reason="the S3 stand-in is not installed: pip install 'moto[s3]' flask flask-cors"
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'thousandwords[s3]'")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    environment = {
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    fsspec.core.url_to_fs("s3://images")[0].mkdir("images")
    yield copy_to("s3://images/own set", own)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.mark.parametrize("kind", READERS)
def test_s3_gives_what_a_folder_gives(s3, own, kind):
    remote, local = READERS[kind](s3), READERS[kind](own)
    assert_same_pairs(remote, local)
    assert 0.5 < remote.check() / local.check() <= 1


def test_pairs_are_written_from_s3_as_from_a_folder(s3, own, tmp_path):
    settings = {"source": "folder", "image_size": 16, "validation_share": 0.5, "max_refused_share": 0.9}
    ingest.write_pairs(DataConfig(path=f"{own}/folder", **settings), 1, tmp_path / "local")
    ingest.write_pairs(DataConfig(url=f"{s3}/folder", version="May", **settings), 1, tmp_path / "remote")
    local, remote = (PairReader(tmp_path / name, "train") for name in ("local", "remote"))
    rows = range(len(local))
    assert len(local) == len(remote) >= 1
    for row in rows:
        assert (local.key(row), local.captions(row)) == (remote.key(row), remote.captions(row))
    assert (local.images(rows) == remote.images(rows)).all()


def test_a_whole_bucket_and_odd_names_are_read(s3):
    files = fsspec.core.url_to_fs("s3://odd")[0]
    files.mkdir("odd")
    for name in ("a[1]*?.png", "100%20.png", "#.png"):
        files.pipe_file(f"odd/{name}", png())
        files.pipe_file(f"odd/{name[:-3]}txt", b"text")
    files.pipe_file("odd/empty/", b"")
    names = ("#.png", "100%20.png", "a[1]*?.png")
    assert outcome(FolderSource("s3://odd")) == dict.fromkeys(names, ("text",))
    files.pipe_file("odd/t.csv", b"image,caption\na[1]*?.png,text\n")
    assert outcome(CsvSource("s3://odd/t.csv")) == {"a[1]*?.png": ("text",)}
    assert WebDatasetSource("s3://odd").tars == []


def test_a_missing_bucket_is_rejected_with_the_fix(s3):
    message = "data.url: there is no folder s3://missing/own. Create it, or set another"
    with pytest.raises(SourceError, match=message):
        FolderSource("s3://missing/own").check()
