"""Durable files: written whole or not at all, and known by their sha256.

No format we use notices a flipped bit by itself, so every folder of artefacts carries a `manifest.json` *outside* the
files, with the sha256, size and row count of each, and a sha256 of its own. Readers check it before first use.

A durable write passes `FAILPOINTS`, at each of which a test can let the process die or the disk fail.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from thousandwords.errors import UserError

MANIFEST = "manifest.json"
FAILPOINTS = ("before-tmp", "mid-write", "after-write", "after-fsync", "after-rename", "after-manifest")
FULL = (errno.ENOSPC, errno.EDQUOT)
MENDS = {
    errno.EROFS: "Mount it for writing, or work in another folder",
    errno.EIO: "The disk may be failing: look into the system's log, and work on another disk",
}


class DamagedArtefact(UserError):
    """A file is missing, cut short, or not the bytes that its manifest promises."""


class CannotWrite(UserError):
    """A folder does not take what is to be kept in it."""


class DiskFull(CannotWrite):
    """There is no room for what is to be kept."""


def write_bytes(path: Path, data: bytes) -> str:
    """Writes `data` under `path` durably; returns its sha256. Raises CannotWrite or DiskFull, and `path` is as it was."""
    half = len(data) // 2
    return write_blocks(path, (memoryview(data)[:half], memoryview(data)[half:]), len(data))


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview], size: int) -> str:
    """`write_bytes` of what may be too large to hold twice: `blocks`, `size` bytes in all, one after the other."""
    with DurableFile(path, size) as file:
        for block in blocks:
            file.write(block)
        return file.commit()


class DurableFile:
    """A file that is written bit by bit, and comes under `path` whole by `commit`, or not at all.

    Tmp in the same folder, write, fsync, rename, fsync of the folder: at no moment does `path` name half a file. Usage:
    with DurableFile(path) as file: file.write(data); sha256 = file.commit(). Everything raises CannotWrite or DiskFull, where
    `size` is how many bytes the message says are to be written; then, and where it is left uncommitted, `path` is as it was.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path, self.size, self.written = Path(path), size, 0
        self.partial = self.path.with_name(f".{self.path.name}.tmp")
        self._digest = hashlib.sha256()
        with self._telling():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            failpoint("before-tmp")
            self._file = open(self.partial, "wb", buffering=0)  # noqa: SIM115 (closed by `close`)

    def write(self, block: bytes | memoryview) -> int:
        with self._telling(len(block)):
            self._digest.update(block)
            rest = memoryview(block)
            while len(rest):
                rest = rest[self._file.write(rest) :]
            self.written += len(block)
            failpoint("mid-write")
        return len(block)

    def commit(self) -> str:
        """Gives the file its name, safe from a power cut; returns its sha256."""
        with self._telling():
            failpoint("after-write")
            os.fsync(self._file.fileno())
            failpoint("after-fsync")
            self._file.close()
            os.replace(self.partial, self.path)
            failpoint("after-rename")
            sync_folder(self.path.parent)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Drops what was not committed."""
        self._file.close()
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> DurableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _telling(self, more: int = 0) -> contextlib.AbstractContextManager[None]:
        return telling(self.path.parent, self.written + more if self.size is None else self.size)


@contextlib.contextmanager
def telling(folder: Path, size: int = 0) -> Iterator[None]:
    """Turns what the system says against writing `size` bytes to `folder` into DiskFull or CannotWrite."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"{folder}: the disk is full, or your share of it is: {size} bytes are to be written, {_free(folder)} are free. "
                "Make room, then run the same again: what is finished is kept"
            ) from error
        mend = MENDS.get(error.errno, "See to it that you may write there, or work in another folder")
        raise CannotWrite(f"{folder} cannot be written: {error.strerror}. {mend}") from error


def _free(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return "an unknown number"


_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """For tests: with THOUSANDWORDS_FAILPOINT=name:3 the third passing of `name` dies as by kill -9, with name:3:EIO it fails."""
    wanted = os.environ.get("THOUSANDWORDS_FAILPOINT")
    if wanted is None:
        return
    place, count, *how = wanted.split(":")
    _passed[name] += 1
    if (place, int(count)) != (name, _passed[name]):
        return
    if how:
        raise OSError(getattr(errno, how[0]), os.strerror(getattr(errno, how[0])))
    os.kill(os.getpid(), signal.SIGKILL)


def write_json(path: Path, value: object) -> str:
    """Writes `value` as sorted, indented JSON, durably; returns its sha256."""
    return write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: object) -> str:
    """The sha256 of `value` as canonical JSON: one name for the same settings, whatever their order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on `text` and `seed` alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode()).digest()[:8], "big") / 2**64


def write_manifest(folder: Path, rows: dict[str, int | None], facts: dict, digests: dict[str, str] | None = None) -> dict:
    """Writes `folder/manifest.json` over the named files; `rows` maps a file name to its row count (None: not rows).

    `digests` are sha256s that are known from writing; files without are hashed.
    """
    folder, digests = Path(folder), digests or {}
    files = {
        name: {
            "sha256": digests.get(name) or sha256_of(folder / name), "bytes": (folder / name).stat().st_size, "rows": count,
        }
        for name, count in sorted(rows.items())
    }
    body = {"files": files, "facts": facts}
    manifest = {**body, "sha256": fingerprint(body)}
    write_json(folder / MANIFEST, manifest)
    failpoint("after-manifest")
    return manifest


def read_manifest(folder: Path, verify: bool = True, mend: str = "dvc checkout, or dvc repro") -> dict:
    """The manifest of `folder`, after checking its own sha256 and, with `verify`, every file it names.

    Raises DamagedArtefact, naming the file, what was expected, what was found, and the command that mends it.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DamagedArtefact(f"{path} is missing, so nothing in {folder} can be trusted. Run: {mend}")
    try:
        manifest = json.loads(path.read_bytes())
        body = {"files": manifest["files"], "facts": manifest["facts"]}
        found = fingerprint(body)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtefact(f"{path} cannot be read ({error}). Run: {mend}") from error
    if found != manifest.get("sha256"):
        raise DamagedArtefact(
            f"{path} was changed: its sha256 should be {manifest.get('sha256')}, found {found}. Run: {mend}"
        )
    if verify:
        for name, entry in manifest["files"].items():
            check_file(Path(folder) / name, entry, mend)
    return manifest


def check_file(path: Path, entry: dict, mend: str) -> None:
    """Raises DamagedArtefact unless `path` has the size and the sha256 of its manifest entry."""
    if not path.is_file():
        raise DamagedArtefact(f"{path} is missing, but its manifest names it. Run: {mend}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise DamagedArtefact(f"{path} should be {entry['bytes']} bytes, found {size}. Run: {mend}")
    found = sha256_of(path)
    if found != entry["sha256"]:
        raise DamagedArtefact(f"{path} is damaged: sha256 should be {entry['sha256']}, found {found}. Run: {mend}")


def clear(folder: Path, *patterns: str) -> None:
    """Removes what an earlier or a killed run left in `folder`: its manifest first, then what the patterns name."""
    for pattern in (MANIFEST, *patterns, ".*.tmp"):
        for old in Path(folder).glob(pattern):
            old.unlink()


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
