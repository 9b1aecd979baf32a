"""Pair shards, read: the rows of one split, verified, with their pictures decoded on demand.

A shard holds squares of `image_size`, or whole pictures (`data.keep`); `images` gives the squares of both.

What writes them is `pairs`; it stands apart, so that a change of how pairs are prepared is no change of how they are trained on.
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.files import DamagedArtefact, check_file, fingerprint, read_manifest
from thousandwords.images import decode_png, fit_square
from thousandwords.mixing import Mixing
from thousandwords.rows import Part, Rows, write_rows
from thousandwords.store import Store

MEND = "dvc repro prepare_pairs"
MOST_UNPACKED = 2**29  # bytes of squares that are kept unpacked; of more none is
MOST_IN_MEMORY = 2**29  # bytes of shards; more are read from disk row by row, where there is a store
PAIR_SCHEMA = pa.schema([
    pa.field("key", pa.string(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),    # PNG, RGB: the square, or the whole picture
    pa.field("captions", pa.list_(pa.string()), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("provenance", pa.string(), nullable=False),
])


def splits(folder: Path) -> list[str]:
    """The splits that a folder of pair shards holds: train, validation, and unseen if there is one."""
    counted = read_manifest(folder, verify=False, mend=MEND)["facts"]["counts"]["splits"]
    return ["train", *sorted(set(counted) - {"train"}, reverse=True)]


def shards_of(manifest: dict, split: str) -> list[str]:
    """The names of a split's shards, in the order of their rows."""
    return sorted(name for name in manifest["files"] if name.startswith(f"{split}-"))


def read_captions(folder: Path, split: str) -> Iterator[list[str]]:
    """The captions of every pair of a split in order, verified shard by shard; no picture is read into memory."""
    manifest = read_manifest(folder, verify=False, mend=MEND)
    for name in _shards_of(folder, manifest, split):
        check_file(Path(folder) / name, manifest["files"][name], MEND)
        file = pq.ParquetFile(Path(folder) / name, page_checksum_verification=True)
        _check_schema(Path(folder) / name, file.schema_arrow)
        for group in file.iter_batches(columns=["captions"]):
            yield from group["captions"].to_pylist()


def _shards_of(folder: Path, manifest: dict, split: str) -> list[str]:
    """`shards_of`; DamagedArtefact where there are none."""
    names = shards_of(manifest, split)
    if not names:
        found = ", ".join(manifest["facts"]["counts"]["splits"])
        raise DamagedArtefact(f"{folder} has no split {split!r}, only {found}. Run: {MEND}")
    return names


class PairReader:
    """The pairs of one split, each file verified; `images` decodes a few of them.

    Memory holds the encoded pictures; with a `store`, and more of them than `most_in_memory` bytes, the store does: they are
    written there once, known by the shards' manifest, and read row by row.
    """

    mixing: Mixing | None = None    # how much training sees of each source, where they have weights

    def __init__(self, folder: Path, split: str, store: Store | None = None, most_in_memory: int = MOST_IN_MEMORY):
        manifest = read_manifest(folder, verify=False, mend=MEND)
        names = _shards_of(folder, manifest, split)
        if store is None or sum(manifest["files"][name]["bytes"] for name in names) <= most_in_memory:
            read_manifest(folder, mend=MEND)
            shards = [_read_shard(Path(folder) / name, manifest["files"][name]["rows"]) for name in names]
            self._take(manifest, _Memory(pa.concat_tables(shards)))
        else:
            self._take(manifest, _Disk(_stored(folder, split, manifest, names, store)))
        self.mixing = Mixing.from_facts(manifest["facts"], split)

    @classmethod
    def of_shard(cls, folder: Path, manifest: dict, name: str) -> PairReader:
        """The pairs of one shard alone, verified."""
        check_file(Path(folder) / name, manifest["files"][name], MEND)
        reader = cls.__new__(cls)
        reader._take(manifest, _Memory(_read_shard(Path(folder) / name, manifest["files"][name]["rows"])))
        return reader

    def _take(self, manifest: dict, rows: _Memory | _Disk) -> None:
        self.fingerprint: str = manifest["sha256"]
        self.image_size: int = manifest["facts"]["image_size"]
        self.counts: dict = manifest["facts"]["counts"]
        self._rows = rows
        self._kept: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._rows.key(index)

    def find(self, keys: Iterable[str]) -> dict[str, int]:
        """The row of each key that is here."""
        wanted = set(keys)
        return {key: row for row, key in enumerate(map(self._rows.key, range(len(self)))) if key in wanted}

    def captions(self, index: int) -> list[str]:
        return self._rows.captions(index)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """The plain squares of the given rows, uint8 (B, H, W, 3): the middle, at `image_size`, whatever is stored.

        Few enough of them are kept once they are unpacked: a small set is shown many times over.
        """
        shape = (self.image_size, self.image_size, 3)
        if len(self) * math.prod(shape) > MOST_UNPACKED:
            pixels = np.empty((len(indices), *shape), np.uint8)
            for row, picture in enumerate(self._decoded(indices)):
                pixels[row] = fit_square(picture, self.image_size)
            return pixels
        if self._kept is None:
            self._kept = np.empty((len(self), *shape), np.uint8), np.zeros(len(self), bool)  # memory comes as rows do
        squares, is_kept = self._kept
        missing = [index for index in indices if not is_kept[index]]
        for index, picture in zip(missing, self._decoded(missing), strict=True):
            squares[index] = fit_square(picture, self.image_size)
            is_kept[index] = True
        return squares[list(indices)]

    def pictures(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The pictures of the given rows as they are stored, each uint8 (H, W, 3) of its own height and width."""
        return list(self._decoded(indices))

    def _decoded(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        self._rows.expect([int(index) for index in indices])
        return (decode_png(self._rows.image(int(index))) for index in indices)


class _Memory:
    """Rows of a table."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def expect(self, rows: Sequence[int]) -> None:
        """Nothing to wait for: they are here."""

    def key(self, row: int) -> str:
        return self.table["key"][row].as_py()

    def captions(self, row: int) -> list[str]:
        return self.table["captions"][row].as_py()

    def image(self, row: int) -> bytes:
        return self.table["image"][row].as_py()


class _Disk:
    """The same rows, on disk."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def expect(self, rows: Sequence[int]) -> None:
        """These rows will be asked for next."""
        self.rows.expect(rows)

    def key(self, row: int) -> str:
        return self.rows.read("key", row).decode()

    def captions(self, row: int) -> list[str]:
        return json.loads(self.rows.read("captions", row))

    def image(self, row: int) -> bytes:
        return self.rows.read("image", row)


def _stored(folder: Path, split: str, manifest: dict, names: Sequence[str], store: Store) -> Rows:
    entries = [manifest["files"][name] for name in names]
    needed, count = sum(entry["bytes"] for entry in entries), sum(entry["rows"] for entry in entries)

    def make(entry: Path) -> None:
        store.check_room(needed, f"the {count:,} pairs of {split} in {folder}")
        for name in names:
            check_file(Path(folder) / name, manifest["files"][name], MEND)
        write_rows(entry, (part for name in names for part in _parts(Path(folder) / name)))

    key = fingerprint({"shards": manifest["sha256"], "split": split, "layout": 1})
    store.begin([key])
    return Rows(store.get(key, make), verify=False)


def _parts(path: Path) -> Iterator[Part]:
    """The rows of a shard, a group at a time: whole pictures of a whole shard may be a gigabyte."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    _check_schema(path, file.schema_arrow)
    for group in file.iter_batches(batch_size=256, columns=["key", "captions", "image"]):
        yield {
            "key": [key.encode() for key in group["key"].to_pylist()],
            "captions": [json.dumps(several, ensure_ascii=False).encode() for several in group["captions"].to_pylist()],
            "image": group["image"].to_pylist(),
        }


def _read_shard(path: Path, rows: int) -> pa.Table:
    table = pq.read_table(path, page_checksum_verification=True)
    _check_schema(path, table.schema)
    if not 0 < table.num_rows == rows:
        raise DamagedArtefact(f"{path} should have {rows or 'some'} rows, found {table.num_rows}. Run: {MEND}")
    return table


def _check_schema(path: Path, schema: pa.Schema) -> None:
    if schema != PAIR_SCHEMA:
        raise DamagedArtefact(f"{path} has columns {schema.names}, not a pair shard's. Run: {MEND}")
