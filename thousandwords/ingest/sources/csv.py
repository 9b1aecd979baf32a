"""A table (CSV, TSV) with a column of picture paths, relative to its folder, and one of captions."""
from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from thousandwords.images import Refused
from thousandwords.sources._contract import MAX_CAPTION_BYTES
from thousandwords.sources._listed import ListSource, Row, picture_name
from thousandwords.tars import SourceError


class TableSource(ListSource):
    """Several rows of one picture are several captions. Tab-separated tables know no quoting, others have CSV's."""

    settings = ("image_column", "caption_column", "delimiter", "recaption_column", "sha256_column", "image_folder")

    def __init__(self, path: str | Path, image_column: str = "image", caption_column: str = "caption",
                 delimiter: str | None = None, recaption_column: str | None = None, image_folder: str | None = None,
                 sha256_column: str | None = None):
        super().__init__(path, image_folder)
        self.image_column, self.caption_column, self.recaption_column = image_column, caption_column, recaption_column
        self.sha256_column = sha256_column
        self.delimiter = delimiter or ("\t" if self.file.lower().endswith((".tsv", ".tab")) else ",")

    def check(self) -> int:
        if self.place.kind(self.file) != "file":
            raise SourceError(f"{self.place.setting}: there is no table {self.address}. Set it to your .csv or .tsv file")
        return self.count(f"its column {self.caption_column!r}",
                          "Fill it, or set data.caption_column to the column that holds them")

    def rows(self) -> Iterator[Row]:
        with self.place.on_disk(self.file) as path, open(path, "rb") as file:
            yield from self._rows(file)

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        quoting = csv.QUOTE_NONE if self.delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(self._lines(file), delimiter=self.delimiter, quoting=quoting, strict=True)
        try:
            header = next(rows, [])
            picture, text = self._column(header, "image_column"), self._column(header, "caption_column")
            again, digest = (self._column(header, name) if getattr(self, name) is not None else None
                             for name in ("recaption_column", "sha256_column"))
            for row in filter(None, rows):
                try:
                    yield self._row(row, header, picture, text, again, digest)
                except Refused as problem:
                    yield Row(f"line {rows.line_num}", problem=problem)
        except csv.Error as error:
            where = f"{self.address}, line {rows.line_num}"
            raise SourceError(f"{where}: {error}. Mend the quotes or line ends") from error

    def _row(self, row: list[str], header: list[str], picture: int, text: int, again: int | None, digest: int | None) -> Row:
        if len(row) != len(header):
            raise Refused("bad_row", f"{len(row)} fields where the header has {len(header)}")
        name = picture_name(row[picture], f"column {self.image_column!r}")
        recaptions, digests = (() if column is None else (row[column],) for column in (again, digest))
        return Row(name, (row[text],), recaptions, digests)

    def _column(self, header: list[str], setting: str) -> int:
        wanted = getattr(self, setting)
        if wanted not in header:
            columns = ", ".join(map(ascii, header)) or "none"
            raise SourceError(f"{self.address} has no column {wanted!r}, only {columns}. Set data.{setting} "
                              f"(or data.delimiter, now {self.delimiter!r}; the text must be UTF-8)")
        return header.index(wanted)

    def _lines(self, file: BinaryIO) -> Iterator[str]:
        """Lines as text; bytes that are no UTF-8 stay in it as surrogates, to be refused with their row."""
        number, line = 1, file.readline(MAX_CAPTION_BYTES).removeprefix(b"\xef\xbb\xbf")
        while line:
            if len(line) == MAX_CAPTION_BYTES:
                limit = f"{MAX_CAPTION_BYTES:,} bytes"
                raise SourceError(f"{self.address}, line {number}: over {limit}. Is it a table?")
            yield line.decode("utf-8", "surrogateescape")
            number, line = number + 1, file.readline(MAX_CAPTION_BYTES)
