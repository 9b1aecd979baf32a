"""Tables as Parquet: the same rows give the same bytes on any machine with the same pyarrow."""

import contextlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.core.files import DurableFile

ROW_GROUP = 1024  # rows; small enough to read group by group from a shard of any size


def _format(schema: pa.Schema) -> dict:
    """Writer options: a checksum per page; zstd except for images, which are compressed already."""
    compressible = [_leaf(field) for field in schema if not pa.types.is_binary(field.type)]
    return {
        "compression": dict.fromkeys(compressible, "zstd"),
        "use_dictionary": compressible,
        "write_page_checksum": True,
    }


def _leaf(field: pa.Field) -> str:
    """The name of a column in Parquet; for a column of lists, the name of its elements."""
    is_list = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return f"{field.name}.list.element" if is_list else field.name


def table_bytes(table: pa.Table, row_group: int = ROW_GROUP) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, row_group_size=row_group, **_format(table.schema))
    return sink.getvalue()


class TableFile(contextlib.AbstractContextManager):
    """The file of `table_bytes`, written durably and row group by row group, for tables larger than memory.

    Usage: with TableFile(path, schema) as file: file.write(rows) for each group, then sha256 = file.commit().
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = DurableFile(path)
        self._writer = pq.ParquetWriter(pa.PythonFile(_Sink(self._file), "w"), schema, **_format(schema))

    def write(self, rows: pa.Table) -> None:
        """Add one row group: the number of rows that a reader unpacks at once, fewer in the last group."""
        self._writer.write_table(rows, row_group_size=max(1, rows.num_rows))

    def commit(self) -> str:
        """Finish the table and give the file its name; return its sha256."""
        self._writer.close()
        return self._file.commit()

    def close(self) -> None:
        """Remove the file if it was not committed."""
        with contextlib.suppress(Exception):  # it writes a footer to a file that is removed next
            self._writer.close()
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class _Sink:
    """The interface that pyarrow expects of a Python file."""

    closed = False

    def __init__(self, file: DurableFile) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.bytes_written

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """The durable file is closed by its owner."""
