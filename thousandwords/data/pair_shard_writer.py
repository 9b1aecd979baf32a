"""Write pair shards, one row group at a time, so that memory holds the images of one group only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from thousandwords.core.manifest import clear
from thousandwords.core.parquet import TableFile
from thousandwords.data.pair_shards import PAIR_SCHEMA

ROW_GROUP = 256  # rows; a reader unpacks a whole group, so its images must fit into memory


class PairShardWriter:
    """Writes shards of `rows_per_shard` rows, one open shard per split; first removes old ones.

    Usage: with PairShardWriter(folder, 4096) as shards: shards.add(row) for each row, then shards.commit().
    After that `rows` and `digests` hold the number of rows and the sha256 of each file.
    """

    def __init__(self, folder: Path, rows_per_shard: int):
        self.folder, self.rows_per_shard = Path(folder), rows_per_shard
        self.rows: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        self._open: dict[str, _Shard] = {}  # by split
        clear(self.folder, "*.parquet")

    def add(self, row: dict) -> None:
        """Add a row, {column: value}, to the open shard of its split."""
        split = row["split"]
        if split not in self._open:
            number = sum(name.startswith(f"{split}-") for name in self.rows)
            self._open[split] = _Shard(self.folder / f"{split}-{number:05d}.parquet")
        shard = self._open[split]
        shard.add(row)
        if shard.rows == self.rows_per_shard:
            self._commit(split)

    def commit(self) -> None:
        """Write all pending rows."""
        for split in list(self._open):
            self._commit(split)

    def splits(self) -> dict[str, int]:
        """The number of rows of each split."""
        totals = Counter()
        for name, rows in self.rows.items():
            totals[name.rpartition("-")[0]] += rows
        return dict(totals)

    def _commit(self, split: str) -> None:
        shard = self._open[split]
        self.digests[shard.path.name] = shard.commit()
        self.rows[shard.path.name] = shard.rows
        del self._open[split]

    def __enter__(self) -> PairShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._open.values():
            shard.file.close()


class _Shard:
    """One shard; at most one row group is pending in memory."""

    def __init__(self, path: Path):
        self.path, self.rows, self.file = path, 0, TableFile(path, PAIR_SCHEMA)
        self._pending: list[dict] = []

    def add(self, row: dict) -> None:
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == ROW_GROUP:
            self._flush()

    def commit(self) -> str:
        if self._pending:
            self._flush()
        with self.file:
            return self.file.commit()

    def _flush(self) -> None:
        self.file.write(table_of(self._pending, PAIR_SCHEMA))
        self._pending = []


def table_of(rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """Build a table from rows, column by column: `from_pylist` takes twice as long for images."""
    rows = list(rows)
    return pa.Table.from_arrays(
        [pa.array([row[field.name] for row in rows], field.type) for field in schema], schema=schema
    )
