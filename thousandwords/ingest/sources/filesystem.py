"""Where files lie: a folder on this machine, or one behind a URL that fsspec knows (s3://bucket/prefix, gs://, https://, …).

On this machine links that lead out of the folder, devices, pipes and files over a limit are refused without reading them.
Behind a URL there are no links; what a list names is read from below the URL, or not at all, and no other address is ever
asked. A file that is not there is one bad input. A network or a key that fails is not: it stops the run, else the weather
would decide what is in a data set. Credentials come from the environment, as the library of each protocol reads them.
"""
from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import fsspec

from thousandwords.images import MAX_BYTES, Refused
from thousandwords.tars import SourceError

AT_ONCE = 16    # requests to a place behind a URL
LOCAL = ("file://", "local://")
EXTRAS = {"s3": "s3", "s3a": "s3"}    # protocols that an extra of this package brings along


@dataclass(frozen=True)
class Entry:
    """What a folder holds under a name."""

    name: str
    is_folder: bool
    is_link: bool = False    # to a folder


class Place(ABC):
    """A folder; the names of what is in it are relative, "" is the folder itself."""

    setting: str    # the setting that names such a place, for messages
    at_once: int    # how many reads are worth having under way
    address: str    # as the user knows it
    name: str       # the last part of the address

    @abstractmethod
    def kind(self, name: str = "") -> str | None:
        """ "file", "folder", "other" (pipes, devices), or None where there is nothing."""

    @abstractmethod
    def entries(self, folder: str = "") -> list[Entry]:
        """What lies in a folder, sorted by the bytes of the names; Refused where it can't be listed."""

    @abstractmethod
    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a plain file in this place; Refused where they are not to be had."""

    @abstractmethod
    def size(self, name: str) -> int: ...

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A file to seek and read in."""

    @abstractmethod
    def on_disk(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """The file on this machine: itself, or a copy for the time being."""

    def shown(self, name: str) -> str:
        """A file of this place, for messages."""
        return f"{self.address.rstrip('/')}/{name}"

    def picture(self, name: str) -> bytes:
        return self.read(name, MAX_BYTES)


def place_of(address: str | Path) -> Place:
    """The folder at a path or a URL; SourceError where no library for the URL is installed."""
    text = str(address)
    for start in LOCAL:
        text = text.removeprefix(start)
    return _Remote(text) if "://" in text else _Disk(Path(text))


def file_of(address: str | Path) -> tuple[Place, str]:
    """The folder that a file lies in, and its name there: "own/t.csv" -> (own, "t.csv")."""
    folder, _, name = str(address).rpartition("/")
    if "/" not in str(address):
        folder = "."
    elif not folder or folder.endswith(":/"):    # "/t.csv", or "memory://t.csv"
        folder += "/"
    return place_of(folder), name


# ---- on this machine


class _Disk(Place):
    setting, at_once = "data.path", 1

    def __init__(self, root: Path):
        self.root, self.address, self.name = root, str(root), root.name
        self._inside: dict[str, bool] = {}

    def kind(self, name: str = "") -> str | None:
        path = self.root / name
        return "file" if path.is_file() else "folder" if path.is_dir() else "other" if path.exists() else None

    def entries(self, folder: str = "") -> list[Entry]:
        try:
            found = sorted(os.scandir(self.root / folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise Refused("io_error", f"not listable: {error.strerror}") from error
        return [_entry(entry) for entry in found]

    def read(self, name: str, limit: int) -> bytes:
        return read_regular(self.root / name, self.root, limit, self._is_inside)

    def _is_inside(self, folder: str) -> bool:
        """Whether a folder, links followed, lies in this place: looked up once each, for it may hold a million files."""
        if folder not in self._inside:
            self._inside[folder] = Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.root))
        return self._inside[folder]

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return open(self.root / name, "rb")

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        yield self.root / name

    def shown(self, name: str) -> str:
        return str(self.root / name)


def _entry(found: os.DirEntry) -> Entry:
    try:
        is_folder = found.is_dir()
    except OSError:    # a link to itself
        is_folder = False
    return Entry(found.name, is_folder, is_folder and found.is_symlink())


def read_regular(path: Path, root: Path, limit: int, is_inside: Callable[[str], bool]) -> bytes:
    """The bytes of a plain file that lies, links followed, inside `root`; type and size are seen first.

    `is_inside` says that a folder does; where it does not know, the whole way is followed.
    """
    try:
        if not is_inside(os.path.dirname(path)) or stat.S_ISLNK((found := os.lstat(path)).st_mode):
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(os.path.realpath(root)):
                raise Refused("unsafe_path", f"{path.name} leads out of {root.name}")
            path, found = real, real.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Refused("not_regular", f"{path.name} is a folder, pipe, socket or device")
        if found.st_size > limit:
            raise Refused("too_many_bytes", f"{found.st_size:,} bytes; the limit is {limit:,}")
        return _read_whole(path, limit)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise Refused("not_regular", f"{path.name} is a link to nothing") from error
        raise Refused("missing_pair", f"there is no {path.name}") from error
    except OSError as error:
        raise Refused("io_error", f"{path.name}: {error.strerror}") from error


def _read_whole(path: Path, limit: int) -> bytes:
    """The bytes of a file that was plain a moment ago; Refused where it is something else by now, or changes meanwhile."""
    with open(path, "rb", buffering=0, opener=_at_once) as file:
        before = os.fstat(file.fileno())
        is_fit = stat.S_ISREG(before.st_mode) and before.st_size <= limit
        data = _read_up_to(file, before.st_size + 1) if is_fit else b""
        after = os.fstat(file.fileno())
    if not is_fit or len(data) != before.st_size or before.st_mtime_ns != after.st_mtime_ns:
        raise Refused("io_error", f"{path.name} changed while it was read")
    return data


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting for the other end of a pipe, and follows no link: neither was there a moment ago."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


# ---- behind a URL


class _Remote(Place):
    setting, at_once = "data.url", AT_ONCE

    def __init__(self, url: str):
        if urlsplit(url).password:
            raise SourceError("data.url holds a password, which would be written down with the data. Leave it out, and give it "
                              "to the library of the protocol by its environment variables")
        self.address = url
        self.files, self.root = _open_url(url)
        self.name = posixpath.basename(self.root.rstrip("/"))
        self.files.invalidate_cache()    # what an earlier run of this process saw

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
                found = self.files.ls(path, detail=True)
        except FileNotFoundError as error:
            raise Refused("io_error", "not listable: there is no such folder") from error
        paths = {item["name"].rstrip("/"): item["type"] == "directory" for item in found}
        paths.pop(path.rstrip("/"), None)    # S3 marks an empty folder by an object of its name
        entries = [Entry(posixpath.basename(path), is_folder) for path, is_folder in paths.items()]
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))

    def read(self, name: str, limit: int) -> bytes:
        path, last = self._path(name), posixpath.basename(name)
        try:
            with self._fetching(name):
                found = self.files.info(path)
                if found["type"] == "directory":
                    raise Refused("not_regular", f"{last} is a folder, pipe, socket or device")
                if (found["size"] or 0) > limit:
                    raise Refused("too_many_bytes", f"{found['size']:,} bytes; the limit is {limit:,}")
                return self.files.cat_file(path)
        except FileNotFoundError as error:
            raise Refused("missing_pair", f"there is no {last}") from error

    def size(self, name: str) -> int:
        with self._fetching(name):
            return self.files.info(self._path(name))["size"]

    def open(self, name: str) -> BinaryIO:
        with self._fetching(name):
            return self.files.open(self._path(name), "rb")

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            with self._fetching(name):
                self.files.get_file(self._path(name), str(copy))
            yield copy

    def _path(self, name: str) -> str:
        clean = posixpath.normpath(name) if name else ""
        if clean.startswith("/") or clean == ".." or clean.startswith("../"):
            raise Refused("unsafe_path", f"{posixpath.basename(clean)} leads out of {self.name}")
        return posixpath.join(self.root, clean) if clean else self.root

    @contextlib.contextmanager
    def _fetching(self, name: str) -> Iterator[None]:
        """A missing file goes its way; whatever else goes wrong between here and there is no fault of the data."""
        try:
            yield
        except (FileNotFoundError, Refused):
            raise
        except Exception as error:    # each protocol's library has its own
            where = self.shown(name) if name else self.address
            raise SourceError(f"{where} could not be fetched ({type(error).__name__}: {error}). Look at the network and at the "
                              "credentials in the environment, then run it again") from error


def _open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """What speaks the protocol of a URL, and the path there."""
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        mend = f"pip install 'thousandwords[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
        raise SourceError(f"{url} needs a package that is not installed. Install it: {mend}") from error
    except Exception as error:    # each protocol's library has its own
        mend = "Set data.url to one that fsspec knows, like s3://bucket/folder"
        raise SourceError(f"{url} cannot be opened ({error}). {mend}") from error
