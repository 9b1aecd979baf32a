"""Tables as Parquet bytes: the same rows give the same bytes, on any machine with the same pyarrow."""
from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1024  # rows; small enough to read one by one from a shard of any size


def table_bytes(table: pa.Table, row_group: int = ROW_GROUP) -> bytes:
    """A table as Parquet: the same rows give the same bytes, and every page carries its checksum."""
    sink = io.BytesIO()
    pq.write_table(
        table.combine_chunks(), sink, row_group_size=row_group, compression="zstd", write_page_checksum=True
    )
    return sink.getvalue()
