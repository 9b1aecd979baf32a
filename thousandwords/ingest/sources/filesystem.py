"""Open the folder that a source reads: a local one, a zip or tar, or a URL for fsspec (s3://bucket/prefix, gs://, …).

Of a URL, files below it only are read. A missing file is one bad input; a network or credential failure stops the run,
or it would decide what is in the data set.
"""

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import fsspec

from thousandwords.core.errors import InvalidInput
from thousandwords.core.files import LFS_FIX, LFS_POINTER
from thousandwords.ingest.sources.archive import ARCHIVES, ArchiveFolder
from thousandwords.ingest.sources.base import SourceError
from thousandwords.ingest.sources.local_folder import Entry, Folder

LOCAL = ("file://", "local://")
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of this package that installs its library


def open_folder(address: str | Path, link_roots: Sequence[str] = ()) -> Folder:
    """Open a path, also one inside a zip or tar, or a URL; SourceError if the library for it is not installed."""
    text = str(address)
    for prefix in LOCAL:
        text = text.removeprefix(prefix)
    if "://" in text:
        return RemoteFolder(text)
    path = Path(text)
    for archive in (path, *path.parents):
        if archive.name.lower().endswith(ARCHIVES) and archive.is_file():
            return ArchiveFolder(archive, path.relative_to(archive).as_posix())
    return Folder(path, link_roots)


def open_parent_folder(address: str | Path, link_roots: Sequence[str] = ()) -> tuple[Folder, str]:
    """Open the folder of a file; returns it and the file name: "own/t.csv" -> (own, "t.csv")."""
    folder, _, name = str(address).rpartition("/")
    if "/" not in str(address):
        folder = "."
    elif not folder or folder.endswith(":/"):  # "/t.csv", or "memory://t.csv"
        folder += "/"
    return open_folder(folder, link_roots), name


def check_not_pointer(folder: Folder, name: str) -> None:
    """Raise SourceError if a file is a Git LFS pointer: then none of the repository's large files is there."""
    if folder.head(name).startswith(LFS_POINTER):
        raise SourceError(f"{folder.address_of(name)} is {LFS_FIX}")


def find_files(address: str | Path, pattern: str, link_roots: Sequence[str] = ()) -> tuple[Folder, list[str]]:
    """(folder, names) of one file, of the files of a folder that match `pattern`, or of a glob in the last part."""
    folder, name = open_parent_folder(str(address).rstrip("/"), link_roots)
    kind = folder.kind(name)
    if kind == "file":
        return folder, [name]
    if kind == "folder":
        folder, name = open_folder(address, link_roots), pattern
    elif folder.kind() != "folder":
        return folder, []
    names = [entry.name for entry in folder.entries() if not entry.name.startswith(".")]
    return folder, [found for found in names if fnmatchcase(found, name) and folder.kind(found) == "file"]


class RemoteFolder(Folder):
    """The same for a URL."""

    setting, parallel_reads = "data.url", 16

    def __init__(self, url: str):
        if urlsplit(url).password:
            raise SourceError(
                "data.url contains a password, which would be stored with the data. Remove it, and "
                "set it in the environment variables of the protocol's library"
            )
        self.address = url
        self.files, self.root = _open_url(url)
        self.name = posixpath.basename(self.root.rstrip("/"))
        self.files.invalidate_cache()  # entries of an earlier run of this process

    def kind(self, name: str = "") -> str | None:
        try:
            with self._fetching(name):
                return "folder" if self.files.info(self._path(name))["type"] == "directory" else "file"
        except FileNotFoundError:
            return None

    def entries(self, folder: str = "") -> list[Entry]:
        path = self._path(folder)
        try:
            with self._fetching(folder):
                items = self.files.ls(path, detail=True)
        except FileNotFoundError as error:
            raise InvalidInput("io_error", "cannot be listed: there is no such folder") from error
        paths = {item["name"].rstrip("/"): item["type"] == "directory" for item in items}
        paths.pop(path.rstrip("/"), None)  # S3 marks an empty folder by an object with its name
        entries = [Entry(posixpath.basename(path), is_folder) for path, is_folder in paths.items()]
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))

    def read(self, name: str, limit: int) -> bytes:
        path, file_name = self._path(name), posixpath.basename(name)
        try:
            with self._fetching(name):
                info = self.files.info(path)
                if info["type"] == "directory":
                    raise InvalidInput("not_regular", f"{file_name} is a folder, pipe, socket or device")
                if (info["size"] or 0) > limit:
                    raise InvalidInput("too_many_bytes", f"{info['size']:,} bytes; the limit is {limit:,}")
                return self.files.cat_file(path)
        except FileNotFoundError as error:
            raise InvalidInput("missing_pair", f"there is no {file_name}") from error

    def size(self, name: str) -> int:
        with self._fetching(name):
            return self.files.info(self._path(name))["size"]

    def open(self, name: str) -> BinaryIO:
        with self._fetching(name):
            return self.files.open(self._path(name), "rb")

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            with self._fetching(name):
                self.files.get_file(self._path(name), str(copy))
            yield copy

    def address_of(self, name: str) -> str:
        return f"{self.address.rstrip('/')}/{name}"

    def _path(self, name: str) -> str:
        clean = posixpath.normpath(name) if name else ""
        if clean.startswith("/") or clean == ".." or clean.startswith("../"):
            raise InvalidInput("unsafe_path", f"{posixpath.basename(clean)} leads out of {self.name}")
        return posixpath.join(self.root, clean) if clean else self.root

    @contextlib.contextmanager
    def _fetching(self, name: str) -> Iterator[None]:
        """Raise SourceError for all errors but a missing file and InvalidInput, which concern the data."""
        try:
            yield
        except (FileNotFoundError, InvalidInput):
            raise
        except Exception as error:  # each protocol's library has its own
            address = self.address_of(name) if name else self.address
            raise SourceError(
                f"{address} could not be fetched ({type(error).__name__}: {error}). Check the network "
                "and the credentials in the environment, then run it again"
            ) from error


def _open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system for the protocol of a URL, and the path in it."""
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        fix = f"pip install 'thousandwords[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
        raise SourceError(f"{url} needs a package that is not installed. Install it: {fix}") from error
    except Exception as error:  # each protocol's library has its own
        fix = "Set data.url to one that fsspec supports, like s3://bucket/folder"
        raise SourceError(f"{url} cannot be opened ({error}). {fix}") from error
