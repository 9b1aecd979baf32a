"""Rows on disk with random access by row number, for training on data sets larger than memory.

Parquet is unpacked in groups of rows, far too slow for single rows in random order. Here each column is the
bytes of its rows end to end (`tokens.bin`) and the start of each row (`tokens.offsets`, int64 little-endian,
one more entry than there are rows). Read with pread: a mapped Arrow file (measured) stops all threads at each
page that is not in memory, its `take` copies whole columns, and a truncated file is a crash.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from thousandwords.core.cache import Store
from thousandwords.core.files import fingerprint
from thousandwords.core.manifest import DamagedArtefact, check_file, read_manifest, write_manifest

FIX = "the same command again; damaged data is made again"
OFFSET = np.dtype("<i8")

RowBatch = dict[str, Sequence[bytes]]  # some rows: {column: the bytes of each row}


def write_rows(folder: Path, batches: Iterable[RowBatch], metadata: dict | None = None) -> dict:
    """Write batches of rows, all with the same columns, one after the other; return the manifest."""
    columns: dict[str, _Column] = {}
    count = 0
    for batch in batches:
        for name, values in batch.items():
            if name not in columns:
                columns[name] = _Column(Path(folder), name)
            columns[name].add(values)
        count += len(next(iter(batch.values())))
    for column in columns.values():
        column.close()
    names = {f"{name}.{kind}": count for name in columns for kind in ("bin", "offsets")}
    return write_manifest(folder, names, {**(metadata or {}), "rows": count})


class _Column:
    def __init__(self, folder: Path, name: str) -> None:
        self.end = 0
        self.bytes = open(folder / f"{name}.bin", "wb")  # noqa: SIM115 (closed by `close`)
        self.offsets = open(folder / f"{name}.offsets", "wb")  # noqa: SIM115
        self.offsets.write(struct.pack("<q", 0))

    def add(self, values: Sequence[bytes]) -> None:
        ends = self.end + np.cumsum([len(value) for value in values], dtype=OFFSET)
        self.bytes.writelines(values)
        self.offsets.write(ends.astype(OFFSET).tobytes())
        self.end = int(ends[-1]) if len(ends) else self.end

    def close(self) -> None:
        for file in (self.bytes, self.offsets):
            with file:
                file.flush()
                os.fsync(file.fileno())


def unpack_rows(
    store: Store,
    folder: Path,
    split: str,
    names: Sequence[str],
    noun: str,
    num_bytes: int,
    batches: Iterable[RowBatch],
    fix: str,
    changes: str | None = None,
) -> RowStore:
    """The rows of the shards `names`, unpacked to the store once, under the sha256 of their manifest, and the fingerprint of
    what `changes` them on the way."""
    manifest = read_manifest(folder, verify=False, fix=fix)
    count = sum(manifest["files"][name]["rows"] for name in names)

    def make(entry: Path) -> None:
        store.check_free_space(num_bytes, f"the {count:,} {noun} of {split} in {folder}")
        for name in names:
            check_file(Path(folder) / name, manifest["files"][name], fix)
        write_rows(entry, batches)

    identity = {"shards": manifest["sha256"], "split": split, "layout": 1}
    key = fingerprint(identity | ({"changes": changes} if changes else {}))
    store.begin([key])
    return RowStore(store.get(key, make), verify=False)


class RowStore:
    """Rows written by `write_rows`, read one by one from any thread. The files stay open if unlinked."""

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(folder, verify=verify, fix=FIX)
        self.metadata: dict = manifest["facts"]
        self._files = {name: os.open(self.folder / name, os.O_RDONLY) for name in manifest["files"]}
        self._closed = weakref.finalize(self, _close_all, list(self._files.values()))

    def __len__(self) -> int:
        return self.metadata["rows"]

    def prefetch(self, rows: Sequence[int]) -> None:
        """Ask the kernel to load these rows now, so that `read` does not wait for each of them in turn."""
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
        """The bytes of one row; IndexError outside 0 … len − 1, DamagedArtefact if the file is truncated."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, end = self._span(column, row)
        return self._read(f"{column}.bin", start, end - start)

    def _span(self, column: str, row: int) -> tuple[int, int]:
        """Start and end of a row in its column file."""
        return struct.unpack(
            "<qq", self._read(f"{column}.offsets", row * OFFSET.itemsize, 2 * OFFSET.itemsize)
        )

    def _read(self, name: str, start: int, length: int) -> bytes:
        data = os.pread(self._files[name], length, start)
        if len(data) != length:
            raise DamagedArtefact(f"{self.folder / name} ends at byte {start + len(data)}. Run: {FIX}")
        return data


def _close_all(files: list[int]) -> None:
    for file in files:
        os.close(file)
