"""The files of a zip or tar, read in place like a folder; a compressed tar is unpacked to a temporary file first.

Nothing is written to the disk beside it, so no name in an archive can lead anywhere.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import posixpath
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import SourceError
from thousandwords.ingest.sources.local_folder import Entry, Folder
from thousandwords.ingest.sources.tar_index import TarPart, read_part, tar_members

DECOMPRESSORS = {".tgz": gzip.open, ".gz": gzip.open, ".tbz2": bz2.open, ".bz2": bz2.open}
DECOMPRESSORS |= {".txz": lzma.open, ".xz": lzma.open}
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
MAX_RATIO = 1_000  # unpacked / packed, of a file in a zip: more is a decompression bomb
MAX_TAR_RATIO, ALWAYS_ALLOWED = 100, 1_000_000_000  # the same of a tar; bytes that any may have


class ArchiveFolder(Folder):
    """The folder `inner` of an archive."""

    def __init__(self, archive: Path, inner: str = ""):
        super().__init__(archive / inner)
        self._archive, self._inner = str(archive), inner
        is_zip = archive.suffix.lower() == ".zip"
        self._members = self._zip_members() if is_zip else self._tar_members()
        self._tree: dict[str, dict[str, bool]] = {"": {}}  # folder -> name -> whether it is a folder
        for name in self._members:
            path, is_folder = name, False
            while path:
                parent, slash, last = path.rpartition("/")
                if slash and path != "/":
                    parent = parent or "/"  # "/a.png" is in the folder "/", whose files are rejected
                self._tree.setdefault(parent, {})[last or "/"] = is_folder
                path, is_folder = parent, True

    def kind(self, name: str = "") -> str | None:
        path = self._path(name)
        return "file" if path in self._members else "folder" if path in self._tree else None

    def entries(self, folder: str = "") -> list[Entry]:
        if (path := self._path(folder)) not in self._tree:
            raise InvalidInput("io_error", "cannot be listed: there is no such folder in the archive")
        entries = (Entry(name, is_folder) for name, is_folder in self._tree[path].items() if name)
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))

    def read(self, name: str, limit: int) -> bytes:
        path = self._path(name)
        if path.startswith(("/", "..")):
            raise InvalidInput("unsafe_path", f"{posixpath.basename(path)} leads out of {self.name}")
        if path in self._tree:
            raise InvalidInput("not_regular", f"{posixpath.basename(path)} is a folder")
        if path not in self._members:
            raise InvalidInput("missing_pair", f"there is no {posixpath.basename(path)}")
        member = self._members[path]
        if isinstance(member, zipfile.ZipInfo):
            return self._read_zip(member, limit)
        return read_part(self._file, member, limit)

    def size(self, name: str) -> int:
        member = self._members[self._path(name)]
        return member.file_size if isinstance(member, zipfile.ZipInfo) else len(self.read(name, 1 << 40))

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self.read(name, 1 << 40))

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.read(name, 1 << 40))
            file.flush()
            yield Path(file.name)

    def _path(self, name: str) -> str:
        path = posixpath.normpath(posixpath.join(self._inner, name))
        return "" if path == "." else path

    def _zip_members(self) -> dict[str, zipfile.ZipInfo]:
        try:
            self._file = zipfile.ZipFile(self._archive)
        except ZIP_ERRORS as error:
            raise SourceError(
                f"{self._archive} is not a zip, or is damaged ({error}). Fetch it again"
            ) from error
        members = [member for member in self._file.infolist() if not member.is_dir()]
        if any(member.flag_bits & 1 for member in members):
            raise SourceError(f"{self._archive} is encrypted. Unpack it, and set data.path to the folder")
        return {self._path_in_zip(member.filename): member for member in members}

    @staticmethod
    def _path_in_zip(name: str) -> str:
        """Some programs on Windows write backslashes."""
        return posixpath.normpath(name.replace("\\", "/") if "/" not in name else name)

    def _read_zip(self, member: zipfile.ZipInfo, limit: int) -> bytes:
        name = posixpath.basename(member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InvalidInput("not_regular", f"{name} is a link")
        if member.file_size > limit:
            raise InvalidInput("too_many_bytes", f"{member.file_size:,} bytes; the limit is {limit:,}")
        if member.file_size > MAX_RATIO * member.compress_size + 1_000_000:
            raise InvalidInput("too_many_bytes", f"{name} would unpack to {member.file_size:,} bytes")
        try:
            return self._file.read(member)
        except (*ZIP_ERRORS, NotImplementedError) as error:
            raise InvalidInput("corrupt_data", f"{name} in the zip: {error}") from error

    def _tar_members(self) -> dict[str, TarPart]:
        self._file = self._open_tar()
        members = tar_members(Path(self._file.name), self._archive)
        return {posixpath.normpath(name): part for name, part, is_folder in members if not is_folder}

    def _open_tar(self) -> BinaryIO:
        """The tar itself, or a temporary file with the unpacked one."""
        decompress = DECOMPRESSORS.get(Path(self._archive).suffix.lower())
        if decompress is None:
            return open(self._archive, "rb")  # noqa: SIM115
        file = tempfile.NamedTemporaryFile(suffix=".tar")  # noqa: SIM115 - open as long as this folder
        try:
            limit = MAX_TAR_RATIO * os.path.getsize(self._archive) + ALWAYS_ALLOWED
            with decompress(self._archive) as packed:
                while block := packed.read(1 << 20):
                    if file.write(block) and file.tell() > limit:
                        raise SourceError(
                            f"{self._archive} would unpack to more than {limit:,} bytes, as a decompression bomb "
                            "does. If you trust it, unpack it, and set data.path to the folder"
                        )
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise SourceError(
                f"{self._archive} cannot be unpacked, or is truncated ({error}). Fetch it again"
            ) from error
        file.flush()
        return file
