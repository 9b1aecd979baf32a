"""Read pair shards: the verified rows of one split, with images decoded on demand.

A shard holds squares of `image_size`, or whole images (`data.keep: whole`); `PairReader.images` returns
squares for both. Package `ingest` writes the shards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.core.cache import STORE, Store
from thousandwords.core.files import fingerprint
from thousandwords.core.manifest import DamagedArtefact, check_file, read_manifest
from thousandwords.core.row_store import RowBatch, RowStore, write_rows
from thousandwords.data.images import decode_png, fit_square
from thousandwords.data.mixture import Mixture

FIX = "dvc repro prepare_pairs"
MAX_UNPACKED_BYTES = 2**29  # of decoded squares kept in memory; if there are more, none is kept
MAX_BYTES_IN_MEMORY = 2**29  # of shards; larger splits are read from disk row by row, if there is a store
STORED_SPLITS = 4  # kept on disk: two or three of the current pairs, and one of earlier pairs
PAIR_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # PNG, RGB: the square, or the whole image
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),
    ]
)


def splits(folder: Path) -> list[str]:
    """The splits in a folder of pair shards: train, validation, and unseen if there is one."""
    counts = read_manifest(folder, verify=False, fix=FIX)["facts"]["counts"]["splits"]
    return ["train", *sorted(set(counts) - {"train"}, reverse=True)]


def shard_names(manifest: dict, split: str) -> list[str]:
    """File names of the shards of a split, in row order."""
    return sorted(name for name in manifest["files"] if name.startswith(f"{split}-"))


def read_captions(folder: Path, split: str) -> Iterator[list[str]]:
    """The captions of each pair of a split, in order; each shard is verified, no image is loaded."""
    manifest = read_manifest(folder, verify=False, fix=FIX)
    for name in _required_shards(folder, manifest, split):
        check_file(Path(folder) / name, manifest["files"][name], FIX)
        file = pq.ParquetFile(Path(folder) / name, page_checksum_verification=True)
        _check_schema(Path(folder) / name, file.schema_arrow)
        for group in file.iter_batches(columns=["captions"]):
            yield from group["captions"].to_pylist()


def _required_shards(folder: Path, manifest: dict, split: str) -> list[str]:
    """`shard_names`; raises DamagedArtefact if there are none."""
    names = shard_names(manifest, split)
    if not names:
        available = ", ".join(manifest["facts"]["counts"]["splits"])
        raise DamagedArtefact(f"{folder} has no split {split!r}, only {available}. Run: {FIX}")
    return names


class PairReader:
    """The pairs of one split, each file verified; `images` decodes the requested rows.

    The encoded images are in memory. With a `store`, a split of more than `max_bytes_in_memory` bytes is
    unpacked to the store once (under the sha256 of the shards' manifest) and read from there row by row.
    """

    mixture: Mixture | None = None  # set if the sources have weights

    def __init__(
        self,
        folder: Path,
        split: str,
        store: Store | None = None,
        max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY,
    ):
        manifest = read_manifest(folder, verify=False, fix=FIX)
        names = _required_shards(folder, manifest, split)
        if store is None or sum(manifest["files"][name]["bytes"] for name in names) <= max_bytes_in_memory:
            read_manifest(folder, fix=FIX)
            shards = [_read_shard(Path(folder) / name, manifest["files"][name]["rows"]) for name in names]
            self._set_rows(manifest, _RowsInMemory(pa.concat_tables(shards)))
        else:
            self._set_rows(manifest, _RowsOnDisk(_unpack_to_store(folder, split, manifest, names, store)))
        self.mixture = Mixture.from_metadata(manifest["facts"], split)

    @classmethod
    def from_shard(cls, folder: Path, manifest: dict, name: str) -> PairReader:
        """The pairs of a single shard, verified."""
        check_file(Path(folder) / name, manifest["files"][name], FIX)
        reader = cls.__new__(cls)
        reader._set_rows(
            manifest, _RowsInMemory(_read_shard(Path(folder) / name, manifest["files"][name]["rows"]))
        )
        return reader

    def _set_rows(self, manifest: dict, rows: _RowsInMemory | _RowsOnDisk) -> None:
        self.fingerprint: str = manifest["sha256"]
        self.image_size: int = manifest["facts"]["image_size"]
        self.counts: dict = manifest["facts"]["counts"]
        self._rows = rows
        self._squares: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return self._rows.key(index)

    def find(self, keys: Iterable[str]) -> dict[str, int]:
        """Row numbers by key, for the keys that exist."""
        keys = set(keys)
        return {key: row for row, key in enumerate(map(self._rows.key, range(len(self)))) if key in keys}

    def captions(self, index: int) -> list[str]:
        return self._rows.captions(index)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Center squares of the given rows at `image_size`, uint8 (B, H, W, 3).

        If all squares fit into memory, each is decoded once and kept: training reads a small data set many
        times.
        """
        shape = (self.image_size, self.image_size, 3)
        if len(self) * math.prod(shape) > MAX_UNPACKED_BYTES:
            pixels = np.empty((len(indices), *shape), np.uint8)
            for row, image in enumerate(self._decoded(indices)):
                pixels[row] = fit_square(image, self.image_size)
            return pixels
        if self._squares is None:  # np.empty takes physical memory only as rows are filled
            self._squares = np.empty((len(self), *shape), np.uint8), np.zeros(len(self), bool)
        squares, is_decoded = self._squares
        missing = [index for index in indices if not is_decoded[index]]
        for index, image in zip(missing, self._decoded(missing), strict=True):
            squares[index] = fit_square(image, self.image_size)
            is_decoded[index] = True
        return squares[list(indices)]

    def whole_images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The images of the given rows as stored, each uint8 (H, W, 3) with its own height and width."""
        return list(self._decoded(indices))

    def _decoded(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        self._rows.prefetch([int(index) for index in indices])
        return (decode_png(self._rows.image(int(index))) for index in indices)


class _RowsInMemory:
    """Rows of a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def prefetch(self, rows: Sequence[int]) -> None:
        """Nothing to do: all rows are in memory."""

    def key(self, row: int) -> str:
        return self.table["key"][row].as_py()

    def captions(self, row: int) -> list[str]:
        return self.table["captions"][row].as_py()

    def image(self, row: int) -> bytes:
        return self.table["image"][row].as_py()


class _RowsOnDisk:
    """The same rows, unpacked on disk."""

    def __init__(self, rows: RowStore) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Announce the rows that are read next."""
        self.rows.prefetch(rows)

    def key(self, row: int) -> str:
        return self.rows.read("key", row).decode()

    def captions(self, row: int) -> list[str]:
        return json.loads(self.rows.read("captions", row))

    def image(self, row: int) -> bytes:
        return self.rows.read("image", row)


def _unpack_to_store(
    folder: Path, split: str, manifest: dict, names: Sequence[str], store: Store
) -> RowStore:
    entries = [manifest["files"][name] for name in names]
    needed, count = sum(entry["bytes"] for entry in entries), sum(entry["rows"] for entry in entries)

    def make(entry: Path) -> None:
        store.check_free_space(needed, f"the {count:,} pairs of {split} in {folder}")
        for name in names:
            check_file(Path(folder) / name, manifest["files"][name], FIX)
        write_rows(entry, (part for name in names for part in _parts(Path(folder) / name)))

    key = fingerprint({"shards": manifest["sha256"], "split": split, "layout": 1})
    store.begin([key])
    return RowStore(store.get(key, make), verify=False)


def _parts(path: Path) -> Iterator[RowBatch]:
    """The rows of a shard in batches: a whole shard of whole images may take a gigabyte."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    _check_schema(path, file.schema_arrow)
    for group in file.iter_batches(batch_size=256, columns=["key", "captions", "image"]):
        yield {
            "key": [key.encode() for key in group["key"].to_pylist()],
            "captions": [
                json.dumps(captions, ensure_ascii=False).encode()
                for captions in group["captions"].to_pylist()
            ],
            "image": group["image"].to_pylist(),
        }


def _read_shard(path: Path, rows: int) -> pa.Table:
    table = pq.read_table(path, page_checksum_verification=True)
    _check_schema(path, table.schema)
    if not 0 < table.num_rows == rows:
        raise DamagedArtefact(f"{path} should have {rows or 'some'} rows, found {table.num_rows}. Run: {FIX}")
    return table


def _check_schema(path: Path, schema: pa.Schema) -> None:
    if schema != PAIR_SCHEMA:
        raise DamagedArtefact(f"{path} has columns {schema.names}, not those of a pair shard. Run: {FIX}")


def open_pairs(folder: Path, split: str) -> PairReader:
    """Open a verified split with at most MAX_BYTES_IN_MEMORY bytes of it in memory."""
    return PairReader(folder, split, Store(STORE / "pairs", keep_runs=STORED_SPLITS))
