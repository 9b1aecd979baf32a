"""Pair shards, read: the rows of one split, verified, with their pictures decoded on demand.

A shard holds squares of `image_size`, or whole pictures (`data.keep`); `images` gives the squares of both.

What writes them is `pairs`; it stands apart, so that a change of how pairs are prepared is no change of how they are trained on.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.files import DamagedArtefact, read_manifest
from thousandwords.images import decode_png, fit_square

MEND = "dvc repro prepare_pairs"
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


class PairReader:
    """The pairs of one split, each file verified; memory holds encoded pictures, `images` decodes a few."""

    def __init__(self, folder: Path, split: str):
        manifest = read_manifest(folder, mend=MEND)
        names = sorted(name for name in manifest["files"] if name.startswith(f"{split}-"))
        if not names:
            found = ", ".join(manifest["facts"]["counts"]["splits"])
            raise DamagedArtefact(f"{folder} has no split {split!r}, only {found}. Run: {MEND}")
        self.fingerprint: str = manifest["sha256"]
        self.image_size: int = manifest["facts"]["image_size"]
        self.counts: dict = manifest["facts"]["counts"]
        self._table = pa.concat_tables([_read_shard(Path(folder) / name) for name in names])

    def __len__(self) -> int:
        return self._table.num_rows

    def key(self, index: int) -> str:
        return self._table["key"][index].as_py()

    def find(self, keys: Iterable[str]) -> dict[str, int]:
        """The row of each key that is here."""
        wanted = set(keys)
        return {key: row for row, key in enumerate(self._table["key"].to_pylist()) if key in wanted}

    def captions(self, index: int) -> list[str]:
        return self._table["captions"][index].as_py()

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """The plain squares of the given rows, uint8 (B, H, W, 3): the middle, at `image_size`, whatever is stored."""
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        for row, picture in enumerate(self._decoded(indices)):
            pixels[row] = fit_square(picture, self.image_size)
        return pixels

    def pictures(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The pictures of the given rows as they are stored, each uint8 (H, W, 3) of its own height and width."""
        return list(self._decoded(indices))

    def _decoded(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        column = self._table["image"]
        return (decode_png(column[int(index)].as_py()) for index in indices)


def _read_shard(path: Path) -> pa.Table:
    table = pq.read_table(path, page_checksum_verification=True)
    if table.schema != PAIR_SCHEMA:
        raise DamagedArtefact(f"{path} has columns {table.schema.names}, not a pair shard's. Run: {MEND}")
    return table
