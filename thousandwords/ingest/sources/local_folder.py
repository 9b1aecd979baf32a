"""A local folder that a source reads.

Links that lead out of the folder, devices, pipes and files over a limit are rejected without being read;
`data.link_roots` and the caches of DVC, git-annex and the Hugging Face hub are where links may lead.
"""

import configparser
import contextlib
import functools
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from thousandwords.core.errors import InvalidInput
from thousandwords.data import image_decoding
from thousandwords.data.prefetch import prefetch_map
from thousandwords.ingest.sources.base import RawPair

Input = TypeVar("Input")


@dataclass(frozen=True)
class Entry:
    """One entry of a folder."""

    name: str
    is_folder: bool
    is_link: bool = False  # to a folder


class Folder:
    """A local folder; file names are relative to it, "" is the folder itself."""

    setting, parallel_reads = "data.path", 0  # the setting for such a folder; reads at a time, 0: no threads

    def __init__(self, root: Path, link_roots: Sequence[str] = ()):
        self.root, self.address, self.name = root, str(root), root.name
        self._link_roots = link_roots
        self._inside: dict[str, bool] = {}

    def kind(self, name: str = "") -> str | None:
        """ "file", "folder", "other" (pipes, devices), or None if it does not exist."""
        path = self.root / name
        with contextlib.suppress(OSError):  # a name that is too long to be one
            return (
                "file"
                if path.is_file()
                else "folder"
                if path.is_dir()
                else "other"
                if path.exists()
                else None
            )

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
                raise InvalidInput(
                    "not_regular", f"{path.name} is a link to nothing: fetch what it leads to"
                ) from error
            raise InvalidInput("missing_pair", f"there is no {path.name}") from error
        except OSError as error:
            raise InvalidInput("io_error", f"{path.name}: {error.strerror}") from error

    def read_image(self, name: str) -> bytes:
        return self.read(name, image_decoding.MAX_BYTES)

    def read_each(self, read: Callable[[Input], RawPair], items: Iterable[Input]) -> Iterator[RawPair]:
        """`read` each item, in order."""
        return prefetch_map(read, items, self.parallel_reads)

    def head(self, name: str) -> bytes:
        """The first bytes of a file; b"" if it cannot be read."""
        with contextlib.suppress(InvalidInput, OSError):
            if self.kind(name) == "file":
                with self.open(name) as file:
                    return file.read(512)
        return b""

    def walk(self, max_folders: int | None = None) -> Iterator[str]:
        """The names of all files below, breadth first, without hidden ones; links to folders are not followed."""
        folders = [""]
        for folder in folders:  # grows
            with contextlib.suppress(InvalidInput):
                for entry in self.entries(folder):
                    name = posixpath.join(folder, entry.name)
                    if entry.name.startswith((".", "__MACOSX")):
                        continue
                    if not entry.is_folder:
                        yield name
                    elif not entry.is_link and (max_folders is None or len(folders) < max_folders):
                        folders.append(name)

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
            if not self._is_allowed(real):
                raise InvalidInput(
                    "unsafe_path",
                    f"{path.name} leads out of {self.root.name}, to {real.parent}; to read it, add that folder or "
                    "one above it to data.link_roots",
                )
            path, status = real, real.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput("not_regular", f"{path.name} is a folder, pipe, socket or device")
        if status.st_size > limit:
            raise InvalidInput("too_many_bytes", f"{status.st_size:,} bytes; the limit is {limit:,}")
        return _read_unchanged(path, limit)

    def _is_inside(self, folder: str) -> bool:
        """Whether a folder, with links resolved, is inside this one; cached per folder, not per file."""
        if folder not in self._inside:
            self._inside[folder] = self._is_allowed(Path(os.path.realpath(folder)))
        return self._inside[folder]

    def _is_allowed(self, real: Path) -> bool:
        return any(real.is_relative_to(root) for root in self._roots)

    @functools.cached_property
    def _roots(self) -> list[str]:
        """Where links may lead: this folder, `data.link_roots`, and caches that it is a checkout of."""
        roots = [os.path.realpath(path) for path in (self.root, *self._link_roots)]
        return roots + _cache_folders(Path(roots[0]))


def _cache_folders(root: Path) -> list[str]:
    """The caches of DVC, git-annex and the Hugging Face hub that the folder `root`, resolved, has its files in.

    A cache that is itself a link is left out: a foreign data set could bring one that leads anywhere.
    """
    found = []
    for folder in (root, *root.parents):
        found += [folder / ".dvc/cache", folder / ".git/annex/objects"]
        if folder.name == "snapshots" and re.match("(datasets|models|spaces)--", folder.parent.name):
            found.append(folder.parent / "blobs")
    caches = [str(cache) for cache in found if os.path.isdir(cache) and os.path.realpath(cache) == str(cache)]
    if root.is_relative_to(os.path.realpath(".")):  # this project's own settings, not those of the data
        settings = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(configparser.Error):
            settings.read([".dvc/config", ".dvc/config.local"])
            if cache := settings.get("cache", "dir", fallback=""):
                caches.append(os.path.realpath(os.path.join(".dvc", os.path.expanduser(cache))))
    return caches


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
