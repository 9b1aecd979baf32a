"""Parquet files with a column of images and a column of captions, as on the Hugging Face hub.

An image is a struct {bytes, path}, bytes, or a path relative to the file's folder; captions are a text or a list of
texts. If images are inside, each row is a pair, named by file and row; a column of paths is treated like a table.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from thousandwords.core.errors import InvalidInput
from thousandwords.data import image_decoding
from thousandwords.ingest.sources.base import (
    RawPair,
    SourceError,
    as_texts,
    clean_captions,
    key_of,
    read_raw_pair,
)
from thousandwords.ingest.sources.filesystem import find_files
from thousandwords.ingest.sources.table import TableSource, open_image_folder

ROWS_AT_ONCE = 32
Values = dict[str, pa.Scalar]  # of one row, by column


class ParquetSource(TableSource):
    """One .parquet file, or a folder of them in the order of their names."""

    def __init__(self, path: str | Path, image_folder: str | None = None, **columns: str | None):
        super().__init__(str(path).rstrip("/"), **columns)
        self.folder, self.file_names = find_files(path, "*.parquet")
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
        if self._has_paths():
            return self.count()
        if not any(text.strip() for text in self._all_captions()):
            raise self.no_captions()
        return rows

    def __iter__(self) -> Iterator[RawPair]:
        if self._has_paths():
            return super().__iter__()
        return self.image_folder.read_each(self._read_row, self._numbered_rows(list(self.columns.values())))

    def records(self) -> Iterator[tuple[str, Values]]:
        for name, number, values in self._numbered_rows(list(self.columns.values())):
            yield f"{name}, row {number}", values

    def image_path(self, values: Values) -> str:
        return super().image_path({column: _to_python(value) for column, value in values.items()})

    def texts(self, values: Values, setting: str) -> tuple[object, ...]:
        if setting not in self.columns:
            return ()
        value = _to_python(values[self.columns[setting]])
        texts = (value,) if setting == "sha256_column" else as_texts(value)
        if texts is None:
            detail = "bytes that are not UTF-8" if isinstance(value, Undecodable) else "a list without text"
            raise InvalidInput("caption_encoding", f"column {self.columns[setting]!r} has {detail}")
        return texts

    # ---- rows with images inside

    def _read_row(self, numbered_row: tuple[str, int, Values]) -> RawPair:
        name, number, values = numbered_row
        key = key_of(f"{name.removesuffix('.parquet')}/{number:08d}")
        provenance = key_of(f"{name}/{number:08d}")
        try:
            recaptions = self.texts(values, "recaption_column")
        except InvalidInput as problem:
            return RawPair(key, None, (), provenance, problem, shard=key_of(name))
        return read_raw_pair(
            key,
            provenance,
            lambda: self._image(values),
            lambda: clean_captions(self.texts(values, "caption_column")),
            recaptions,
            self.texts(values, "sha256_column"),
            key_of(name),
        )

    def _image(self, values: Values) -> bytes:
        column = self.columns["image_column"]
        value = values[column]
        if isinstance(value, pa.StructScalar) and value.is_valid:
            fields = [name for name in ("bytes", "path") if name in value and value[name].is_valid]
            value = value[fields[0]] if fields else pa.scalar(None)
        data = _to_python(value)
        if not isinstance(data, bytes):
            return self.image_folder.read_image(self.image_path({column: value}))
        if len(data) > image_decoding.MAX_BYTES:
            raise InvalidInput(
                "too_many_bytes", f"{len(data):,} bytes; the limit is {image_decoding.MAX_BYTES:,}"
            )
        return data

    def _all_captions(self) -> Iterator[str]:
        for _, _, values in self._numbered_rows([self.columns["caption_column"]]):
            try:
                yield from self.texts(values, "caption_column")
            except InvalidInput:
                continue

    # ---- files

    def _numbered_rows(self, columns: list[str]) -> Iterator[tuple[str, int, Values]]:
        """(file name, row number, values) of each row."""
        for name in self.file_names:
            number = 0
            with self._open(name) as file:
                batches = file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False)
                while (batch := self._decoded(name, next, batches, None)) is not None:
                    for row in range(batch.num_rows):
                        yield name, number, {column: batch.column(column)[row] for column in columns}
                        number += 1

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        options = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
        with self.folder.open(name) as raw:
            yield self._decoded(name, functools.partial(pq.ParquetFile, **options), raw)

    def _decoded(self, name: str, decode: Callable, *arguments: object) -> object:
        try:
            return decode(*arguments)
        except Exception as error:  # a decoder raises anything on damaged bytes
            raise SourceError(
                f"{self.folder.address_of(name)} is not a Parquet file, or is truncated or damaged "
                f"({str(error)[:200]}). Fetch it again"
            ) from error

    def _check_file(self, name: str) -> int:
        """The number of rows; raises SourceError if a column is missing, has a wrong type or is too large."""
        address = self.folder.address_of(name)
        with self._open(name) as file:
            for setting, column in self.columns.items():
                _check_column(address, file.schema_arrow, setting, column)
            if _is_text(file.schema_arrow.field(self.columns["image_column"]).type) != self._has_paths():
                raise SourceError(
                    f"{address} stores images in another form than {self.file_names[0]}. "
                    "Put such files into separate folders"
                )
            _check_unpacked_size(address, file.metadata)
            return file.metadata.num_rows

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


def _check_column(address: str, schema: pa.Schema, setting: str, column: str) -> None:
    if schema.names.count(column) != 1:
        columns = ", ".join(map(ascii, schema.names[:20])) or "none"
        raise SourceError(f"{address} has no column {column!r}, only {columns}. Set data.{setting}")
    is_image = setting == "image_column"
    has_type, expected = (_is_image, "images") if is_image else (_is_texts, "text or lists of texts")
    if not has_type(found := schema.field(column).type):
        raise SourceError(
            f"{address}: its column {column!r} holds {found}, not {expected}. Set data.{setting}"
        )


def _check_unpacked_size(address: str, metadata: pq.FileMetaData) -> None:
    """Raise SourceError for a decompression bomb: rows that unpack to more than that many images may have."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > image_decoding.MAX_BYTES * (group.num_rows + 1):
            raise SourceError(
                f"{address}: the {group.num_rows} rows of row group {number} would unpack to "
                f"{group.total_byte_size:,} bytes. Do not use this file"
            )


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_texts(kind: pa.DataType) -> bool:
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return _is_text(kind) or (is_list and _is_text(kind.value_type))


def _is_bytes(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_image(kind: pa.DataType) -> bool:
    if not types.is_struct(kind):
        return _is_bytes(kind) or _is_text(kind)
    checks = {"bytes": _is_bytes, "path": _is_text}
    fields = {
        field.name: field.type for field in kind if field.name in checks and not types.is_null(field.type)
    }
    return bool(fields) and all(checks[name](field) for name, field in fields.items())
