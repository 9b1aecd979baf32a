"""Parquet files with a column of images and a column of captions, as on the Hugging Face hub.

An image is a struct {bytes, path}, bytes, or a path relative to the file's folder; captions are a text or a
list of texts. If images are inside, each row is a pair, named by file and row; a column of paths is treated
like a table. Rows are read a few at a time. A value that cannot be read is rejected with its row; a truncated
file, or one of other types, stops the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.core.errors import InvalidInput
from thousandwords.data import image_decoding
from thousandwords.ingest.sources.base import (
    RawPair,
    SourceError,
    as_texts,
    clean_captions,
    key_of,
    read_ahead,
    read_raw_pair,
)
from thousandwords.ingest.sources.filesystem import open_folder
from thousandwords.ingest.sources.listing import ListSource, Row, image_name, open_image_folder

ROWS_AT_ONCE = 32
Values = dict[str, pa.Scalar]  # of one row: setting that names the column -> value


class ParquetSource(ListSource):
    """One .parquet file, or a folder of them in the order of their names."""

    settings = ("image_column", "caption_column", "recaption_column", "sha256_column", "image_folder")

    def __init__(
        self,
        path: str | Path,
        image_column: str = "image",
        caption_column: str = "caption",
        recaption_column: str | None = None,
        image_folder: str | None = None,
        sha256_column: str | None = None,
    ):
        super().__init__(str(path).rstrip("/"))
        self.columns = {"image_column": image_column, "caption_column": caption_column}
        optional = {"recaption_column": recaption_column, "sha256_column": sha256_column}
        self.columns |= {setting: column for setting, column in optional.items() if column is not None}
        self.file_names = [self.file_name] if self.folder.kind(self.file_name) == "file" else []
        if self.folder.kind(self.file_name) == "folder":
            self.folder = open_folder(path)
            names = [entry.name for entry in self.folder.entries() if _is_parquet(entry.name)]
            self.file_names = [name for name in names if self.folder.kind(name) == "file"]
        self.image_folder = open_image_folder(self.folder, image_folder)

    def check(self) -> int:
        if not self.file_names:
            raise SourceError(
                f"{self.folder.setting}: there is no .parquet file at {self.address}. Set it to one, or to a "
                "folder of them"
            )
        rows = sum(self._check_file(name) for name in self.file_names)
        if not rows:
            raise SourceError(f"{self.address} has no rows. Fetch it again, or use another")
        column = f"its column {self.columns['caption_column']!r}"
        fix = "Fill it, or set data.caption_column to the column with the captions"
        if self._has_paths():
            return self.count(column, fix)
        if not any(text.strip() for text in self._all_captions()):
            raise SourceError(f"{self.address} has no captions: {column} is empty. {fix}")
        return rows

    def __iter__(self) -> Iterator[RawPair]:
        if self._has_paths():
            return super().__iter__()
        return read_ahead(self._read_row, self._numbered_rows(), self.image_folder.max_parallel_reads)

    # ---- rows with images inside

    def _numbered_rows(self) -> Iterator[tuple[str, int, Values]]:
        """(file name, row number, values) of each row."""
        for name in self.file_names:
            for number, values in enumerate(self._values(name, self.columns)):
                yield name, number, values

    def _read_row(self, numbered_row: tuple[str, int, Values]) -> RawPair:
        name, number, values = numbered_row
        key = key_of(f"{name.removesuffix('.parquet')}/{number:08d}")
        provenance = key_of(f"{name}/{number:08d}")
        try:
            recaptions = self._texts(values, "recaption_column")
        except InvalidInput as problem:
            return RawPair(key, None, (), provenance, problem, shard=key_of(name))
        return read_raw_pair(
            key,
            provenance,
            lambda: self._image(values["image_column"]),
            lambda: clean_captions(self._texts(values, "caption_column")),
            recaptions,
            self._digests(values),
            key_of(name),
        )

    def _image(self, value: pa.Scalar) -> bytes:
        if isinstance(value, pa.StructScalar) and value.is_valid:
            fields = [name for name in ("bytes", "path") if name in value and value[name].is_valid]
            value = value[fields[0]] if fields else pa.scalar(None)
        data = _to_python(value)
        if not isinstance(data, bytes):
            return self.image_folder.read_image(self._path(value))
        if len(data) > image_decoding.MAX_BYTES:
            raise InvalidInput(
                "too_many_bytes", f"{len(data):,} bytes; the limit is {image_decoding.MAX_BYTES:,}"
            )
        return data

    def _all_captions(self) -> Iterator[str]:
        for name in self.file_names:
            for values in self._values(name, {"caption_column": self.columns["caption_column"]}):
                try:
                    yield from self._texts(values, "caption_column")
                except InvalidInput:
                    continue

    # ---- rows with paths

    def rows(self) -> Iterator[Row]:
        for name in self.file_names:
            for number, values in enumerate(self._values(name, self.columns)):
                try:
                    yield Row(
                        self._path(values["image_column"]),
                        self._texts(values, "caption_column"),
                        self._texts(values, "recaption_column"),
                        self._digests(values),
                    )
                except InvalidInput as problem:
                    yield Row(f"{name}, row {number}", problem=problem)

    def _path(self, value: pa.Scalar) -> str:
        return image_name(_to_python(value), f"column {self.columns['image_column']!r}")

    # ---- values

    def _texts(self, values: Values, setting: str) -> tuple[str, ...]:
        if setting not in values:
            return ()
        value = _to_python(values[setting])
        texts = as_texts(value)
        if texts is None:
            detail = "bytes that are not UTF-8" if isinstance(value, Undecodable) else "a list without text"
            raise InvalidInput("caption_encoding", f"column {self.columns[setting]!r} has {detail}")
        return texts

    def _digests(self, values: Values) -> tuple[object, ...]:
        return (_to_python(values["sha256_column"]),) if "sha256_column" in values else ()

    def _values(self, name: str, columns: dict[str, str]) -> Iterator[Values]:
        """The values of these columns in each row of a file."""
        with self._open(name) as file:
            batches = file.iter_batches(ROWS_AT_ONCE, columns=list(columns.values()), use_threads=False)
            while (batch := self._next_batch(batches, name)) is not None:
                arrays = {setting: batch.column(column) for setting, column in columns.items()}
                for row in range(batch.num_rows):
                    yield {setting: array[row] for setting, array in arrays.items()}

    def _next_batch(self, batches: Iterator[pa.RecordBatch], name: str) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except Exception as error:  # a decoder raises anything on damaged bytes
            raise self._damaged(name, error) from error

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        with self.folder.open(name) as raw:
            try:
                file = pq.ParquetFile(
                    raw, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
                )
            except Exception as error:
                raise self._damaged(name, error) from error
            yield file

    def _damaged(self, name: str, error: Exception) -> SourceError:
        return SourceError(
            f"{self.folder.address_of(name)} is not a Parquet file, or is truncated or damaged "
            f"({str(error)[:200]}). Fetch it again"
        )

    # ---- checks of a file

    def _check_file(self, name: str) -> int:
        """The number of rows; raises SourceError if a column is missing, has a wrong type or is too large."""
        with self._open(name) as file:
            for setting, column in self.columns.items():
                self._check_column(name, file.schema_arrow, setting, column)
            if _is_text(file.schema_arrow.field(self.columns["image_column"]).type) != self._has_paths():
                raise SourceError(
                    f"{self.folder.address_of(name)} stores images in another form than {self.file_names[0]}. "
                    "Put such files into separate folders"
                )
            _check_unpacked_size(self.folder.address_of(name), file.metadata)
            return file.metadata.num_rows

    def _check_column(self, name: str, schema: pa.Schema, setting: str, column: str) -> None:
        if schema.names.count(column) != 1:
            columns = ", ".join(map(ascii, schema.names[:20])) or "none"
            raise SourceError(
                f"{self.folder.address_of(name)} has no column {column!r}, only {columns}. Set data.{setting}"
            )
        is_image = setting == "image_column"
        has_type, expected = (_is_image, "images") if is_image else (_is_texts, "text or lists of texts")
        if not has_type(column_type := schema.field(column).type):
            address = self.folder.address_of(name)
            raise SourceError(
                f"{address}: its column {column!r} holds {column_type}, not {expected}. Set data.{setting}"
            )

    def _has_paths(self) -> bool:
        with self._open(self.file_names[0]) as file:
            return _is_text(file.schema_arrow.field(self.columns["image_column"]).type)


class Undecodable(bytes):
    """Placeholder for a text that is not UTF-8."""


def _to_python(value: pa.Scalar) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return Undecodable()


def _check_unpacked_size(address: str, metadata: pq.FileMetaData) -> None:
    """Raise SourceError for a decompression bomb: rows that unpack to more than that many images may have."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > image_decoding.MAX_BYTES * (group.num_rows + 1):
            raise SourceError(
                f"{address}: the {group.num_rows} rows of row group {number} would unpack to "
                f"{group.total_byte_size:,} bytes. Do not use this file"
            )


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_texts(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return _is_text(kind) or (is_list and _is_text(kind.value_type))


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind) or _is_text(kind)
    fields = {
        field.name: field.type for field in kind if not pa.types.is_null(field.type)
    }  # null: no row has one
    checks = {"bytes": _is_bytes, "path": _is_text}
    return not fields.keys().isdisjoint(checks) and all(
        has_type(fields[name]) for name, has_type in checks.items() if name in fields
    )
