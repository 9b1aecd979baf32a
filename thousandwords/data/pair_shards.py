"""Read pair shards: the verified rows of one split, with images decoded on demand.

A shard holds squares of `image_size`, or whole images (`data.keep: whole`); `PairReader.images` returns
squares for both. Package `ingest` writes the shards.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.core.cache import STORE, Store
from thousandwords.core.files import fingerprint
from thousandwords.core.manifest import DamagedArtefact, check_file, read_manifest
from thousandwords.core.row_store import RowBatch, RowStore, unpack_rows
from thousandwords.data.images import decode_png, fit_square
from thousandwords.data.recaptions import Recaptions, replace_captions
from thousandwords.data.sampler import Mixture

FIX = "dvc repro prepare_pairs"
MAX_UNPACKED_BYTES = 2**29  # of decoded squares kept in memory; if there are more, none is kept
MAX_BYTES_IN_MEMORY = 2**29  # of shards; larger splits are read from disk row by row, if there is a store
ROW_GROUP = 256  # rows; a reader unpacks a whole group, so its images must fit into memory
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
    unpacked to the store once and read from there row by row. With `recaptions`, pairs that have a second caption have
    that one only.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        store: Store | None = None,
        max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY,
        recaptions: Recaptions | None = None,
    ):
        manifest = read_manifest(folder, verify=False, fix=FIX)
        second_captions = recaptions.fingerprint if recaptions else None
        names = _required_shards(folder, manifest, split)
        num_bytes = sum(manifest["files"][name]["bytes"] for name in names)
        if store is None or num_bytes <= max_bytes_in_memory:
            read_manifest(folder, fix=FIX)
            shards = [
                replace_captions(
                    _read_shard(Path(folder) / name, manifest["files"][name]["rows"]),
                    recaptions.of_shard(name) if recaptions else {},
                )
                for name in names
            ]
            self._set_rows(manifest, pa.concat_tables(shards))
        else:
            parts = (part for name in names for part in _parts(Path(folder) / name, recaptions))
            rows = unpack_rows(store, folder, split, names, "pairs", num_bytes, parts, FIX, second_captions)
            self._set_rows(manifest, rows)
        if second_captions:
            self.fingerprint = fingerprint([self.fingerprint, second_captions])
        self.mixture = Mixture.from_metadata(manifest["facts"], split)

    @classmethod
    def from_shard(cls, folder: Path, manifest: dict, name: str) -> PairReader:
        """The pairs of a single shard, verified."""
        check_file(Path(folder) / name, manifest["files"][name], FIX)
        reader = cls.__new__(cls)
        reader._set_rows(manifest, _read_shard(Path(folder) / name, manifest["files"][name]["rows"]))
        return reader

    def _set_rows(self, manifest: dict, rows: pa.Table | RowStore) -> None:
        self.fingerprint: str = manifest["sha256"]
        self.image_size: int = manifest["facts"]["image_size"]
        self.counts: dict = manifest["facts"]["counts"]
        self.mixture: Mixture | None = None  # of several sources
        self._rows = rows
        self._squares: tuple[np.ndarray, np.ndarray] | None = None

    def _read(self, column: str, row: int) -> str | list[str] | bytes:
        if isinstance(self._rows, pa.Table):
            return self._rows[column][row].as_py()
        decode = {"key": bytes.decode, "captions": json.loads, "image": bytes}[column]
        return decode(self._rows.read(column, row))

    def __len__(self) -> int:
        return self._rows.num_rows if isinstance(self._rows, pa.Table) else len(self._rows)

    def key(self, index: int) -> str:
        return self._read("key", index)

    def find(self, keys: Iterable[str]) -> dict[str, int]:
        """Row numbers by key, for the keys that exist."""
        keys = set(keys)
        return {key: row for row, key in enumerate(map(self.key, range(len(self)))) if key in keys}

    def captions(self, index: int) -> list[str]:
        return self._read("captions", index)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Center squares of the given rows at `image_size`, uint8 (B, H, W, 3); kept if all fit into memory."""
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
        rows = [int(index) for index in indices]
        if isinstance(self._rows, RowStore):
            self._rows.prefetch(rows)
        return (decode_png(self._read("image", row)) for row in rows)


def _parts(path: Path, recaptions: Recaptions | None) -> Iterator[RowBatch]:
    """The rows of a shard in batches: a whole shard of whole images may take a gigabyte."""
    second = recaptions.of_shard(path.name) if recaptions else {}
    file = pq.ParquetFile(path, page_checksum_verification=True)
    _check_schema(path, file.schema_arrow)
    for batch in file.iter_batches(batch_size=256, columns=["key", "captions", "image"]):
        group = replace_captions(pa.Table.from_batches([batch]), second)
        yield {
            "key": [key.encode() for key in group["key"].to_pylist()],
            "captions": [
                json.dumps(texts, ensure_ascii=False).encode() for texts in group["captions"].to_pylist()
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


def open_pairs(folder: Path, split: str, recaptions: Recaptions | None = None) -> PairReader:
    """Open a verified split with at most MAX_BYTES_IN_MEMORY bytes of it in memory."""
    store = Store(STORE / "pairs", keep_runs=STORED_SPLITS)
    return PairReader(folder, split, store, recaptions=recaptions)


def caption_counts(folder: Path) -> dict | None:
    """Counts of the first training shard: {"pairs", "captions", "distinct", "words": {"least", "median", "most"}}."""
    manifest = read_manifest(folder, verify=False, fix=FIX)
    names = shard_names(manifest, "train")
    if not names:
        return None
    check_file(folder / names[0], manifest["files"][names[0]], FIX)
    table = pq.read_table(folder / names[0], columns=["captions"], page_checksum_verification=True)
    rows = table["captions"].to_pylist()
    captions = [caption for row in rows for caption in row]
    lengths = [len(caption.split()) for caption in captions]
    words = {"least": min(lengths), "median": statistics.median_low(lengths), "most": max(lengths)}
    return {"pairs": len(rows), "captions": len(captions), "distinct": len(set(captions)), "words": words}
