"""Tables as Parquet: compression per column, and the same bytes when written at once or by row groups."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thousandwords.core.files import sha256_of
from thousandwords.core.parquet import TableFile, table_bytes

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("tokens", pa.list_(pa.uint16(), 3)),
    ]
)


def table(rows: int) -> pa.Table:
    columns = {
        "key": [f"{row:03}" for row in range(rows)],
        "image": [bytes([row]) * 50 for row in range(rows)],
        "captions": [["a cat", "a dog"][: row % 3] for row in range(rows)],
        "tokens": [[row, 0, 1] for row in range(rows)],
    }
    return pa.table(columns, schema=SCHEMA)


def test_images_are_stored_uncompressed_and_other_columns_with_dictionary_and_zstd():
    columns = pq.ParquetFile(io.BytesIO(table_bytes(table(5)))).metadata.row_group(0).to_dict()["columns"]
    encodings = {
        column["path_in_schema"]: (column["compression"], column["dictionary_page_offset"] is not None)
        for column in columns
    }
    assert encodings == {
        "key": ("ZSTD", True),
        "image": ("UNCOMPRESSED", False),
        "captions.list.element": ("ZSTD", True),
        "tokens.list.element": ("ZSTD", True),
    }


@pytest.mark.parametrize("rows", [1, 4, 5, 11])
def test_a_table_written_by_row_groups_is_the_same_file(tmp_path, rows):
    whole = table(rows)
    with TableFile(tmp_path / "t.parquet", SCHEMA) as file:
        for start in range(0, rows, 4):
            file.write(whole.slice(start, 4))
        digest = file.commit()
    assert (tmp_path / "t.parquet").read_bytes() == table_bytes(whole, row_group=4)
    assert digest == sha256_of(tmp_path / "t.parquet")


def test_a_flipped_bit_in_an_image_is_detected_by_the_checksum_of_its_page(tmp_path):
    data = bytearray(table_bytes(table(5)))
    data[data.index(bytes([3]) * 50) + 7] ^= 4
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(io.BytesIO(bytes(data)), page_checksum_verification=True)


def test_an_uncommitted_table_leaves_no_file(tmp_path):
    with pytest.raises(KeyError), TableFile(tmp_path / "t.parquet", SCHEMA) as file:
        file.write(table(4))
        raise KeyError
    assert list(tmp_path.iterdir()) == []
