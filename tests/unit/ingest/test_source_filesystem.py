"""Remote sources give the same pairs as local files, and a network failure is not a bad input."""

from pathlib import Path

import fsspec
import pytest

from tests.helpers.images import details, outcome, write
from tests.helpers.sources import READERS, assert_same_pairs, copy_to, write_sources
from thousandwords.core.errors import InvalidInput
from thousandwords.data import image_decoding
from thousandwords.ingest.sources import CsvSource, FolderSource, WebDatasetSource, filesystem
from thousandwords.ingest.sources.base import SourceError


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return write_sources(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def memory(own) -> str:
    return copy_to("memory://thousandwords/own", own)


@pytest.mark.parametrize("kind", READERS)
def test_a_url_gives_what_a_folder_gives(memory, own, kind):
    remote, local = READERS[kind](memory), READERS[kind](own)
    assert_same_pairs(remote, local)
    assert 0.5 < remote.check() / local.check() <= 1
    assert any(pair.problem for pair in local) and not all(pair.problem for pair in local)


def test_a_file_url_is_a_local_folder(own, tmp_path):
    (tmp_path / "away.png").symlink_to(own / "folder/a.png")
    write(tmp_path, {"away.txt": "x"})
    assert outcome(FolderSource(f"file://{tmp_path}")) == {"away.png": "unsafe_path"}


def test_nothing_outside_the_url_is_read(memory):
    folder = filesystem.open_folder(f"{memory}/folder")
    for name in ("../lists/c.json", "/thousandwords/own/lists/c.json", "sub/../../lists/c.json", ".."):
        with pytest.raises(InvalidInput, match="unsafe_path: .* leads out of folder"):
            folder.read(name, 1_000_000)
    reasons = details(CsvSource(f"{memory}/folder/t.csv"))
    assert reasons["../parquet/x.png"] == "unsafe_path: x.png leads out of folder"


def test_a_file_over_the_limit_is_not_fetched(memory, monkeypatch):
    monkeypatch.setattr(image_decoding, "MAX_BYTES", 1_000)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", None)
    with pytest.raises(InvalidInput, match="too_many_bytes: 3,.* bytes; the limit is 1,000"):
        filesystem.open_folder(f"{memory}/folder").read_image("a.png")


def test_a_network_failure_stops_the_run_and_is_not_a_bad_image(memory, monkeypatch):
    class NetworkError(Exception):
        pass

    memory_files = fsspec.get_filesystem_class("memory")
    original = memory_files.cat_file

    def cat_file(self, path, *arguments, **settings):
        if path.endswith("d.png"):
            raise NetworkError("connection reset")
        return original(self, path, *arguments, **settings)

    monkeypatch.setattr(memory_files, "cat_file", cat_file)
    message = r"folder/d.png could not be fetched \(NetworkError: connection reset\). Check the network and the cred"
    with pytest.raises(SourceError, match=message):
        list(FolderSource(f"{memory}/folder"))


def test_temporary_copies_are_removed(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(list(WebDatasetSource(f"{memory}/tars"))) == 6
    assert not list(tmp_path.iterdir())


def test_a_truncated_remote_tar_is_reported_by_its_url(memory):
    files, path = fsspec.core.url_to_fs(f"{memory}/cut")
    files.pipe_file(f"{path}/c.tar", files.cat_file(path.replace("cut", "tars/b.tar"))[:1500])
    message = r"memory://thousandwords/own/cut/c.tar (is not a plain tar, or )?is truncated .*Fetch it again"
    with pytest.raises(SourceError, match=message):
        WebDatasetSource(f"{memory}/cut").check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "nonsense://x",
            "nonsense://x cannot be opened .*. Set data.url to one that fsspec supports, like s3",
        ),
        (
            "ftp://me:secret@host/x",
            "data.url contains a password, which would be stored with the data. Remove",
        ),
        ("memory://nowhere/x", "data.url: there is no folder memory://nowhere/x. Create it, or set another"),
    ],
)
def test_an_unusable_url_is_rejected_with_the_fix(url, message):
    with pytest.raises(SourceError, match=message) as caught:
        FolderSource(url).check()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "fix"), [("s3://b/x", r"pip install 'thousandwords\[s3\]'"), ("gs://b/x", "Install s3fs")]
)
def test_a_protocol_without_its_package_says_what_to_install(monkeypatch, url, fix):
    def url_to_fs(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(SourceError, match=f"{url} needs a package that is not installed. Install it: {fix}"):
        FolderSource(url)
