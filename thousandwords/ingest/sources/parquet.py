"""Parquet files with a column of pictures and one of captions, as the Hugging Face hub stores them.

A picture is a struct {bytes, path}, plain bytes, or a path relative to the file's folder; captions are a text or a list of texts.
Where pictures are inside, each row is a pair, named by file and row; a column of paths makes a list, as a table does. Rows are
read a few at a time. A value that can't be read is refused with its row; a file that is cut, or of other types, stops the run.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thousandwords.images import Refused
from thousandwords.sources import _places
from thousandwords.sources._contract import RawPair, clean_captions, key_of, raw_pair, read_ahead, texts_in
from thousandwords.sources._listed import ListSource, Row, picture_name, pictures_of
from thousandwords.sources._places import place_of
from thousandwords.tars import SourceError

ROWS_AT_ONCE = 32
Values = dict[str, pa.Scalar]    # of one row, by the setting that names the column


class ParquetSource(ListSource):
    """One .parquet file, or a folder of them in the order of their names."""

    settings = ("image_column", "caption_column", "recaption_column", "sha256_column", "image_folder")

    def __init__(self, path: str | Path, image_column: str = "image", caption_column: str = "caption",
                 recaption_column: str | None = None, image_folder: str | None = None, sha256_column: str | None = None):
        super().__init__(str(path).rstrip("/"))
        self.columns = {"image_column": image_column, "caption_column": caption_column}
        more = {"recaption_column": recaption_column, "sha256_column": sha256_column}
        self.columns |= {setting: column for setting, column in more.items() if column is not None}
        self.names = [self.file] if self.place.kind(self.file) == "file" else []
        if self.place.kind(self.file) == "folder":
            self.place = place_of(path)
            names = [entry.name for entry in self.place.entries() if _is_parquet(entry.name)]
            self.names = [name for name in names if self.place.kind(name) == "file"]
        self.pictures = pictures_of(self.place, image_folder)

    def check(self) -> int:
        if not self.names:
            raise SourceError(f"{self.place.setting}: there is no .parquet file at {self.address}. Set it to one, or to a "
                              "folder of them")
        rows = sum(self._check_file(name) for name in self.names)
        if not rows:
            raise SourceError(f"{self.address} has no rows. Fetch it again, or take another")
        column = f"its column {self.columns['caption_column']!r}"
        mend = "Fill it, or set data.caption_column to the column that holds them"
        if self._holds_paths():
            return self.count(column, mend)
        if not any(text.strip() for text in self._all_captions()):
            raise SourceError(f"{self.address} has no captions: {column} is empty. {mend}")
        return rows

    def __iter__(self) -> Iterator[RawPair]:
        if self._holds_paths():
            return super().__iter__()
        return read_ahead(self._read_row, self._numbered(), self.pictures.at_once)

    # ---- rows with pictures inside

    def _numbered(self) -> Iterator[tuple[str, int, Values]]:
        """("train-00000.parquet", 7, its values) of every row."""
        for name in self.names:
            for number, values in enumerate(self._values(name, self.columns)):
                yield name, number, values

    def _read_row(self, found: tuple[str, int, Values]) -> RawPair:
        name, number, values = found
        key, provenance = key_of(f"{name.removesuffix('.parquet')}/{number:08d}"), key_of(f"{name}/{number:08d}")
        try:
            recaptions = self._texts(values, "recaption_column")
        except Refused as problem:
            return RawPair(key, None, (), provenance, problem, shard=key_of(name))
        return raw_pair(key, provenance, lambda: self._picture(values["image_column"]),
                        lambda: clean_captions(self._texts(values, "caption_column")), recaptions,
                        self._digests(values), key_of(name))

    def _picture(self, value: pa.Scalar) -> bytes:
        found = value
        if isinstance(value, pa.StructScalar) and value.is_valid:
            fields = [name for name in ("bytes", "path") if name in value and value[name].is_valid]
            found = value[fields[0]] if fields else pa.scalar(None)
        data = _plain(found)
        if not isinstance(data, bytes):
            return self.pictures.picture(self._path(found))
        if len(data) > _places.MAX_BYTES:
            raise Refused("too_many_bytes", f"{len(data):,} bytes; the limit is {_places.MAX_BYTES:,}")
        return data

    def _all_captions(self) -> Iterator[str]:
        for name in self.names:
            for values in self._values(name, {"caption_column": self.columns["caption_column"]}):
                try:
                    yield from self._texts(values, "caption_column")
                except Refused:
                    continue

    # ---- rows with paths

    def rows(self) -> Iterator[Row]:
        for name in self.names:
            for number, values in enumerate(self._values(name, self.columns)):
                try:
                    yield Row(self._path(values["image_column"]), self._texts(values, "caption_column"),
                              self._texts(values, "recaption_column"), self._digests(values))
                except Refused as problem:
                    yield Row(f"{name}, row {number}", problem=problem)

    def _path(self, value: pa.Scalar) -> str:
        return picture_name(_plain(value), f"column {self.columns['image_column']!r}")

    # ---- values

    def _texts(self, values: Values, setting: str) -> tuple[str, ...]:
        if setting not in values:
            return ()
        found = _plain(values[setting])
        texts = texts_in(found)
        if texts is None:
            detail = "bytes that are no UTF-8" if isinstance(found, Undecodable) else "no text in its list"
            raise Refused("caption_encoding", f"column {self.columns[setting]!r} holds {detail}")
        return texts

    def _digests(self, values: Values) -> tuple[object, ...]:
        return (_plain(values["sha256_column"]),) if "sha256_column" in values else ()

    def _values(self, name: str, columns: dict[str, str]) -> Iterator[Values]:
        """The wanted values of each row of a file."""
        with self._opened(name) as file:
            batches = file.iter_batches(ROWS_AT_ONCE, columns=list(columns.values()), use_threads=False)
            while (batch := self._next(batches, name)) is not None:
                found = {setting: batch.column(column) for setting, column in columns.items()}
                for row in range(batch.num_rows):
                    yield {setting: values[row] for setting, values in found.items()}

    def _next(self, batches: Iterator[pa.RecordBatch], name: str) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except Exception as error:    # a decoder fed with damage raises anything
            raise self._damaged(name, error) from error

    @contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        with self.place.open(name) as raw:
            try:
                file = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
            except Exception as error:
                raise self._damaged(name, error) from error
            yield file

    def _damaged(self, name: str, error: Exception) -> SourceError:
        return SourceError(f"{self.place.shown(name)} is no Parquet file, or was cut short or damaged "
                           f"({str(error)[:200]}). Fetch it again")

    # ---- what a file holds

    def _check_file(self, name: str) -> int:
        """Its number of rows; SourceError where a column is missing, of another type, or out of all proportion."""
        with self._opened(name) as file:
            for setting, column in self.columns.items():
                self._check_column(name, file.schema_arrow, setting, column)
            if _is_text(file.schema_arrow.field(self.columns["image_column"]).type) != self._holds_paths():
                raise SourceError(f"{self.place.shown(name)} holds pictures in another way than {self.names[0]} does. Put files "
                                  "that differ into folders of their own")
            _check_proportions(self.place.shown(name), file.metadata)
            return file.metadata.num_rows

    def _check_column(self, name: str, schema: pa.Schema, setting: str, column: str) -> None:
        if schema.names.count(column) != 1:
            columns = ", ".join(map(ascii, schema.names[:20])) or "none"
            raise SourceError(f"{self.place.shown(name)} has no column {column!r}, only {columns}. Set data.{setting}")
        is_fit, wanted = (_is_picture, "pictures") if setting == "image_column" else (_is_texts, "text or lists of texts")
        if not is_fit(found := schema.field(column).type):
            raise SourceError(f"{self.place.shown(name)}: its column {column!r} holds {found}, not {wanted}. Set data.{setting}")

    def _holds_paths(self) -> bool:
        with self._opened(self.names[0]) as file:
            return _is_text(file.schema_arrow.field(self.columns["image_column"]).type)


class Undecodable(bytes):
    """Stands for a text that is no UTF-8."""


def _plain(value: pa.Scalar) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return Undecodable()


def _check_proportions(where: str, metadata: pq.FileMetaData) -> None:
    """SourceError where a few rows unpack to more than as many pictures may have: a bomb."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > _places.MAX_BYTES * (group.num_rows + 1):
            raise SourceError(f"{where}: the {group.num_rows} rows of row group {number} would unpack to "
                              f"{group.total_byte_size:,} bytes. Do not use this file")


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


def _is_picture(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind) or _is_text(kind)
    fields = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)
              if not pa.types.is_null(kind.field(number).type)}    # where no row has any
    known = {"bytes": _is_bytes, "path": _is_text}
    return not fields.keys().isdisjoint(known) and all(fit(fields[name]) for name, fit in known.items() if name in fields)
