"""Tables as Parquet: the same rows give the same bytes, on any machine with the same pyarrow."""
from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.files import DurableFile

ROW_GROUP = 1024  # rows; small enough to read one by one from a shard of any size


def _format(schema: pa.Schema) -> dict:
    """How a table is written: every page with its checksum; pictures, which are compressed already, as they are."""
    small = [_leaf(field) for field in schema if not pa.types.is_binary(field.type)]
    return {"compression": dict.fromkeys(small, "zstd"), "use_dictionary": small, "write_page_checksum": True}


def _leaf(field: pa.Field) -> str:
    """The name of a column in Parquet: its values', where it holds lists."""
    is_list = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return f"{field.name}.list.element" if is_list else field.name


def table_bytes(table: pa.Table, row_group: int = ROW_GROUP) -> bytes:
    """A table as Parquet."""
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, row_group_size=row_group, **_format(table.schema))
    return sink.getvalue()


class TableFile:
    """`table_bytes` written durably and row group by row group, for a table that memory need not hold.

    Usage: with TableFile(path, schema) as file: file.write(rows) for each group, then sha256 = file.commit().
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = DurableFile(path)
        self._writer = pq.ParquetWriter(pa.PythonFile(_Sink(self._file), "w"), schema, **_format(schema))

    def write(self, rows: pa.Table) -> None:
        """Adds one row group: as many rows as the reader is to unpack at once, fewer in the last."""
        self._writer.write_table(rows, row_group_size=max(1, rows.num_rows))

    def commit(self) -> str:
        """Ends the table and gives it its name; returns the sha256 of the file."""
        self._writer.close()
        return self._file.commit()

    def close(self) -> None:
        """Drops what was not committed."""
        with contextlib.suppress(Exception):  # it writes a footer, to a file that is about to go
            self._writer.close()
        self._file.close()

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sink:
    """What pyarrow asks of a file in Python."""

    closed = False

    def __init__(self, file: DurableFile) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.written

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The durable file is closed by who opened it."""
