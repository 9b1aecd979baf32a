"""Folders that sources read: local ones, and URLs for fsspec (s3://bucket/prefix, gs://, https://, …).

Locally, links that lead out of the folder, devices, pipes and files over a limit are rejected without being read. Of a
URL, files below it only are read. A missing file is one bad input; a network or credential failure stops the run, or
it would decide what is in the data set.
"""

import contextlib
import os
import posixpath
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec

from thousandwords.core.errors import InvalidInput
from thousandwords.data import image_decoding
from thousandwords.data.prefetch import prefetch_map
from thousandwords.ingest.sources.base import RawPair, SourceError

Input = TypeVar("Input")
LOCAL = ("file://", "local://")
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> extra of this package that installs its library


@dataclass(frozen=True)
class Entry:
    """One entry of a folder."""

    name: str
    is_folder: bool
    is_link: bool = False  # to a folder


class Folder:
    """A local folder; file names are relative to it, "" is the folder itself."""

    setting, parallel_reads = "data.path", 0  # the setting for such a folder; reads at a time, 0: no threads

    def __init__(self, root: Path):
        self.root, self.address, self.name = root, str(root), root.name
        self._inside: dict[str, bool] = {}

    def kind(self, name: str = "") -> str | None:
        """ "file", "folder", "other" (pipes, devices), or None if it does not exist."""
        path = self.root / name
        return "file" if path.is_file() else "folder" if path.is_dir() else "other" if path.exists() else None

    def entries(self, folder: str = "") -> list[Entry]:
        """The entries, sorted by the bytes of their names; raises InvalidInput if there is no list."""
        try:
            entries = sorted(os.scandir(self.root / folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise InvalidInput("io_error", f"cannot be listed: {error.strerror}") from error
        return [_entry(entry) for entry in entries]

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a regular file; raises InvalidInput if it cannot be read."""
        path = self.root / name
        try:
            return self._read(path, limit)
        except FileNotFoundError as error:
            if path.is_symlink():
                raise InvalidInput("not_regular", f"{path.name} is a link to nothing") from error
            raise InvalidInput("missing_pair", f"there is no {path.name}") from error
        except OSError as error:
            raise InvalidInput("io_error", f"{path.name}: {error.strerror}") from error

    def read_image(self, name: str) -> bytes:
        return self.read(name, image_decoding.MAX_BYTES)

    def read_each(self, read: Callable[[Input], RawPair], items: Iterable[Input]) -> Iterator[RawPair]:
        """`read` each item, in order."""
        return prefetch_map(read, items, self.parallel_reads)

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        """Open a file for seeking and reading."""
        return open(self.root / name, "rb")

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A local path: the file itself, or a temporary copy."""
        yield self.root / name

    def address_of(self, name: str) -> str:
        """The address of a file, for messages."""
        return str(self.root / name)

    def _read(self, path: Path, limit: int) -> bytes:
        """The bytes of a regular file inside this folder, links resolved; type and size are checked first."""
        if not self._is_inside(os.path.dirname(path)) or stat.S_ISLNK((status := os.lstat(path)).st_mode):
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(os.path.realpath(self.root)):
                raise InvalidInput("unsafe_path", f"{path.name} leads out of {self.root.name}")
            path, status = real, real.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput("not_regular", f"{path.name} is a folder, pipe, socket or device")
        if status.st_size > limit:
            raise InvalidInput("too_many_bytes", f"{status.st_size:,} bytes; the limit is {limit:,}")
        return _read_unchanged(path, limit)

    def _is_inside(self, folder: str) -> bool:
        """Whether a folder, with links resolved, is inside this one; cached per folder, not per file."""
        if folder not in self._inside:
            self._inside[folder] = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.root))
        return self._inside[folder]


def open_folder(address: str | Path) -> Folder:
    """Open a path or URL; raises SourceError if the library for the URL is not installed."""
    text = str(address)
    for prefix in LOCAL:
        text = text.removeprefix(prefix)
    return RemoteFolder(text) if "://" in text else Folder(Path(text))


def open_parent_folder(address: str | Path) -> tuple[Folder, str]:
    """Open the folder of a file; returns it and the file name: "own/t.csv" -> (own, "t.csv")."""
    folder, _, name = str(address).rpartition("/")
    if "/" not in str(address):
        folder = "."
    elif not folder or folder.endswith(":/"):  # "/t.csv", or "memory://t.csv"
        folder += "/"
    return open_folder(folder), name


def find_files(address: str | Path, pattern: str) -> tuple[Folder, list[str]]:
    """(folder, names) of one file, of the files of a folder that match `pattern`, or of a glob in the last part."""
    folder, name = open_parent_folder(str(address).rstrip("/"))
    kind = folder.kind(name)
    if kind == "file":
        return folder, [name]
    if kind == "folder":
        folder, name = open_folder(address), pattern
    elif folder.kind() != "folder":
        return folder, []
    names = [entry.name for entry in folder.entries() if not entry.name.startswith(".")]
    return folder, [found for found in names if fnmatchcase(found, name) and folder.kind(found) == "file"]


def _entry(entry: os.DirEntry) -> Entry:
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link to itself
        is_folder = False
    return Entry(entry.name, is_folder, is_folder and entry.is_symlink())


def _read_unchanged(path: Path, limit: int) -> bytes:
    """The bytes of a regular file; raises InvalidInput if it was replaced or changes while it is read."""
    with open(path, "rb", buffering=0, opener=_open_nonblocking) as file:
        before = os.fstat(file.fileno())
        is_readable = stat.S_ISREG(before.st_mode) and before.st_size <= limit
        data = _read_up_to(file, before.st_size + 1) if is_readable else b""
        after = os.fstat(file.fileno())
    if not is_readable or len(data) != before.st_size or before.st_mtime_ns != after.st_mtime_ns:
        raise InvalidInput("io_error", f"{path.name} changed while it was read")
    return data


def _open_nonblocking(path: str, flags: int) -> int:
    """Opener that never waits for a pipe and follows no link, if the file was replaced meanwhile."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


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
