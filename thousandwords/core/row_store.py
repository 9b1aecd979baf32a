"""Rows on disk, each to be had by its number: what a data set larger than memory is trained from.

Parquet is read in groups of rows and unpacked, far too much work for a row here and a row there. So what training asks for in
random order is written once more, unpacked: a column is the bytes of its rows end to end (`tokens.bin`), and where each row
starts (`tokens.offsets`, int64 little-endian, one more than there are rows).

Rows are read, not mapped: memory holds the rows asked for and nothing else, several threads read at once, and a file that
has lost its end is an error instead of a dead process.
"""
from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from thousandwords.files import DamagedArtefact, read_manifest, write_manifest

MEND = "the same command again; what is damaged is made anew"
OFFSET = np.dtype("<i8")

Part = dict[str, Sequence[bytes]]  # some rows: {column: the bytes of each}


def write_rows(folder: Path, parts: Iterable[Part], facts: dict | None = None) -> dict:
    """Writes parts, each of some rows and all of the same columns, one after the other; returns the manifest."""
    columns: dict[str, _Column] = {}
    count = 0
    for part in parts:
        for name, values in part.items():
            if name not in columns:
                columns[name] = _Column(Path(folder), name)
            columns[name].add(values)
        count += len(next(iter(part.values())))
    for column in columns.values():
        column.close()
    names = {f"{name}.{kind}": count for name in columns for kind in ("bin", "offsets")}
    return write_manifest(folder, names, {**(facts or {}), "rows": count})


class _Column:
    def __init__(self, folder: Path, name: str) -> None:
        self.end = 0
        self.bytes = open(folder / f"{name}.bin", "wb")  # noqa: SIM115 (open as long as rows come)
        self.offsets = open(folder / f"{name}.offsets", "wb")  # noqa: SIM115
        self.offsets.write(struct.pack("<q", 0))

    def add(self, values: Sequence[bytes]) -> None:
        ends = self.end + np.cumsum([len(value) for value in values], dtype=OFFSET)
        self.bytes.writelines(values)
        self.offsets.write(ends.astype(OFFSET).tobytes())
        self.end = int(ends[-1]) if len(ends) else self.end

    def close(self) -> None:
        for file in (self.bytes, self.offsets):
            _close_durably(file)


def _close_durably(file: BinaryIO) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())


class Rows:
    """The rows that `write_rows` wrote, read one by one, from any thread. The files stay open, so they may be unlinked."""

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(folder, verify=verify, mend=MEND)
        self.facts: dict = manifest["facts"]
        self._files = {name: os.open(self.folder / name, os.O_RDONLY) for name in manifest["files"]}
        self._closed = weakref.finalize(self, _close_all, list(self._files.values()))

    def __len__(self) -> int:
        return self.facts["rows"]

    def expect(self, rows: Sequence[int]) -> None:
        """Asks the disk for all these rows at once, so that `read` waits for one answer and not for each in turn."""
        starts = {name: self._files[name] for name in self._files if name.endswith(".offsets")}
        for file in starts.values():
            for row in rows:
                os.posix_fadvise(file, row * OFFSET.itemsize, 2 * OFFSET.itemsize, os.POSIX_FADV_WILLNEED)
        for name in starts:
            column = name.removesuffix(".offsets")
            for row in rows:
                start, end = self._span(column, row)
                os.posix_fadvise(self._files[f"{column}.bin"], start, end - start, os.POSIX_FADV_WILLNEED)

    def read(self, column: str, row: int) -> bytes:
        """The bytes of one row; IndexError outside 0 … len − 1, DamagedArtefact where the file has lost its end."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, end = self._span(column, row)
        return self._read(f"{column}.bin", start, end - start)

    def _span(self, column: str, row: int) -> tuple[int, int]:
        """Where a row begins and ends."""
        return struct.unpack("<qq", self._read(f"{column}.offsets", row * OFFSET.itemsize, 2 * OFFSET.itemsize))

    def _read(self, name: str, start: int, length: int) -> bytes:
        data = os.pread(self._files[name], length, start)
        if len(data) != length:
            raise DamagedArtefact(f"{self.folder / name} ends at byte {start + len(data)}. Run: {MEND}")
        return data


def _close_all(files: list[int]) -> None:
    for file in files:
        os.close(file)
