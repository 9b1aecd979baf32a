"""Durable files: written completely or not at all, and identified by their sha256.

A durable write passes `FAILPOINTS`. At each of them a test can kill the process or make the disk fail.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from thousandwords.core.errors import UserError

FAILPOINTS = ("before-tmp", "mid-write", "after-write", "after-fsync", "after-rename", "after-manifest")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_FIX = "a Git LFS pointer, not the file. Run in its repository: git lfs pull"
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
FIX_BY_ERRNO = {
    errno.EROFS: "Mount it for writing, or use another folder",
    errno.EIO: "The disk may be failing: look at the system log, and use another disk",
}


class CannotWrite(UserError):
    """A folder cannot be written to."""


class DiskFull(CannotWrite):
    """There is not enough free space."""


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` to `path` durably; return its sha256. On CannotWrite or DiskFull `path` is unchanged."""
    half = len(data) // 2
    return write_blocks(path, (memoryview(data)[:half], memoryview(data)[half:]), len(data))


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview], size: int) -> str:
    """`write_bytes` for data too large to hold twice: `blocks` in order, `size` bytes in total."""
    with DurableFile(path, size) as file:
        for block in blocks:
            file.write(block)
        return file.commit()


class DurableFile(contextlib.AbstractContextManager):
    """A file that is written in blocks and appears under `path` at `commit`, completely or not at all.

    Temporary file in the same folder, write, fsync, rename, fsync of the folder. Usage: with DurableFile(path) as
    file: file.write(data); sha256 = file.commit(). Every step may raise CannotWrite or DiskFull (`size`: the
    bytes that the message names); then, or without a commit, `path` is unchanged.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path, self.size, self.bytes_written = Path(path), size, 0
        self.partial = self.path.with_name(f".{self.path.name}.tmp")
        self._digest = hashlib.sha256()
        with self._translate_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            failpoint("before-tmp")
            self._file = open(self.partial, "wb", buffering=0)  # noqa: SIM115 (closed by `close`)

    def write(self, block: bytes | memoryview) -> int:
        with self._translate_errors(len(block)):
            self._digest.update(block)
            rest = memoryview(block)
            while len(rest):
                rest = rest[self._file.write(rest) :]
            self.bytes_written += len(block)
            failpoint("mid-write")
        return len(block)

    def commit(self) -> str:
        """Give the file its name, safe against a power cut; return its sha256."""
        with self._translate_errors():
            failpoint("after-write")
            os.fsync(self._file.fileno())
            failpoint("after-fsync")
            self._file.close()
            os.replace(self.partial, self.path)
            failpoint("after-rename")
            sync_folder(self.path.parent)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Remove the file if it was not committed."""
        self._file.close()
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _translate_errors(self, more: int = 0) -> contextlib.AbstractContextManager[None]:
        return translate_write_errors(
            self.path.parent, self.bytes_written + more if self.size is None else self.size
        )


@contextlib.contextmanager
def translate_write_errors(folder: Path, size: int = 0) -> Iterator[None]:
    """Turn an OSError from writing `size` bytes to `folder` into DiskFull or CannotWrite."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise DiskFull(
                f"{folder}: the disk is full, or your quota is used up: {size} bytes are to be written, {_free(folder)} are free. "
                "Make room, then run the same again: finished work is kept"
            ) from error
        fix = FIX_BY_ERRNO.get(error.errno, "Check that you may write there, or use another folder")
        raise CannotWrite(f"{folder} cannot be written: {error.strerror}. {fix}") from error


def check_writable(folder: Path = Path(".")) -> None:
    """Raises CannotWrite if no file can be made in the folder, by default this project: before long work."""
    with translate_write_errors(folder.resolve()):
        tempfile.TemporaryFile(dir=folder).close()


def _free(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return "an unknown number"


_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """For tests: THOUSANDWORDS_FAILPOINT=name:3 kills at the third call with `name`; name:3:EIO raises."""
    setting = os.environ.get("THOUSANDWORDS_FAILPOINT")
    if setting is None:
        return
    target, count, *errnos = setting.split(":")
    _passed[name] += 1
    if (target, int(count)) != (name, _passed[name]):
        return
    if errnos:
        raise OSError(getattr(errno, errnos[0]), os.strerror(getattr(errno, errnos[0])))
    os.kill(os.getpid(), signal.SIGKILL)


def write_json(path: Path, value: object) -> str:
    """Write `value` as sorted, indented JSON, durably; return its sha256."""
    return write_bytes(
        path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: object) -> str:
    """The sha256 of `value` as canonical JSON: the same for the same settings in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) that depends only on `text` and `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode()).digest()[:8], "big") / 2**64


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
