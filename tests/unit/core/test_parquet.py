"""Tables as Parquet: what is compressed, what is not, and that in one piece or in row groups they are the same bytes."""
from __future__ import annotations

import io
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thousandwords.files import DiskFull, sha256_of
from thousandwords.tables import TableFile, table_bytes

SCHEMA = pa.schema([
    pa.field("key", pa.string()), pa.field("image", pa.binary()), pa.field("captions", pa.list_(pa.string())),
    pa.field("tokens", pa.list_(pa.uint16(), 3)),
])


def table(rows: int) -> pa.Table:
    columns = {"key": [f"{row:03}" for row in range(rows)], "image": [bytes([row]) * 50 for row in range(rows)],
               "captions": [["a cat", "a dog"][: row % 3] for row in range(rows)], "tokens": [[row, 0, 1] for row in range(rows)]}
    return pa.table(columns, schema=SCHEMA)


def test_pictures_are_stored_as_they_are_and_all_else_is_compressed_by_dictionary_and_zstd():
    columns = pq.ParquetFile(io.BytesIO(table_bytes(table(5)))).metadata.row_group(0).to_dict()["columns"]
    found = {one["path_in_schema"]: (one["compression"], one["dictionary_page_offset"] is not None) for one in columns}
    assert found == {"key": ("ZSTD", True), "image": ("UNCOMPRESSED", False), "captions.list.element": ("ZSTD", True),
                     "tokens.list.element": ("ZSTD", True)}


@pytest.mark.parametrize("rows", [1, 4, 5, 11])
def test_a_table_written_group_by_group_is_the_same_file_as_the_whole(tmp_path, rows):
    whole = table(rows)
    with TableFile(tmp_path / "t.parquet", SCHEMA) as file:
        for start in range(0, rows, 4):
            file.write(whole.slice(start, 4))
        digest = file.commit()
    assert (tmp_path / "t.parquet").read_bytes() == table_bytes(whole, row_group=4)
    assert digest == sha256_of(tmp_path / "t.parquet")


def test_a_flipped_bit_in_a_picture_is_found_by_its_page(tmp_path):
    data = bytearray(table_bytes(table(5)))
    data[data.index(bytes([3]) * 50) + 7] ^= 4
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(io.BytesIO(bytes(data)), page_checksum_verification=True)


def test_a_table_that_is_left_half_way_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), TableFile(tmp_path / "t.parquet", SCHEMA) as file:
        file.write(table(4))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("THOUSANDWORDS_FAILPOINT", "mid-write:3:ENOSPC")
    monkeypatch.setattr("thousandwords.files._passed", Counter())
    with pytest.raises(DiskFull, match="the disk is full"), TableFile(tmp_path / "t.parquet", SCHEMA) as file:
        file.write(table(4))
        file.commit()
    assert list(tmp_path.iterdir()) == []
