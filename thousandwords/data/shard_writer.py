"""Write shards, one row group at a time, so that memory holds the rows of one group per split only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from thousandwords.core.manifest import clear
from thousandwords.core.parquet import TableFile


class ShardWriter:
    """Writes shards of `rows_per_shard` rows, one open shard per split; first removes old ones.

    Usage: with ShardWriter(folder, schema, 4096, 256) as shards: shards.add(split, rows), then shards.commit(). After
    that `rows` and `digests` are known for each file. How rows are grouped in tables does not change the files.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_shard: int, row_group: int):
        self.folder, self.schema = Path(folder), schema
        self.rows_per_shard, self.row_group = rows_per_shard, row_group
        self.rows: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        self._open: dict[str, _Shard] = {}  # by split
        clear(self.folder, "*.parquet")

    def add(self, split: str, table: pa.Table) -> None:
        """Add rows to the open shard of their split, and to the next ones."""
        # list items are "element" in Parquet, "item" in pyarrow: one name gives the same bytes
        table = pa.Table.from_arrays(table.columns, schema=self.schema)
        while table.num_rows:
            if split not in self._open:
                number = sum(name.startswith(f"{split}-") for name in self.rows)
                self._open[split] = _Shard(self.folder / f"{split}-{number:05d}.parquet", self.schema)
            shard = self._open[split]
            count = min(self.row_group - shard.num_pending, self.rows_per_shard - shard.rows)
            shard.add(table.slice(0, count))
            table = table.slice(count)
            if shard.num_pending == self.row_group:
                shard.flush()
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

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._open.values():
            shard.file.close()


class _Shard:
    """One shard; at most one row group is pending in memory."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.rows, self.num_pending, self.file = path, 0, 0, TableFile(path, schema)
        self._pending: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        self.rows += table.num_rows
        self.num_pending += table.num_rows

    def flush(self) -> None:
        if self._pending:
            self.file.write(pa.concat_tables(self._pending).combine_chunks())
        self._pending, self.num_pending = [], 0

    def commit(self) -> str:
        self.flush()
        with self.file:
            return self.file.commit()


def table_of(rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """Build a table from rows, column by column: `from_pylist` takes twice as long for images."""
    rows = list(rows)
    return pa.Table.from_arrays(
        [pa.array([row[field.name] for row in rows], field.type) for field in schema], schema=schema
    )
