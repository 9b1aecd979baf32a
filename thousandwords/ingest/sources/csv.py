"""CSV and TSV tables with a column of image paths, relative to the table, and a column of captions."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import MAX_CAPTION_BYTES, SourceError
from thousandwords.ingest.sources.listing import ListSource, Row, image_name


class CsvSource(ListSource):
    """Several rows of an image are several captions. Fields may be quoted, except in tab-separated tables."""

    settings = (
        "image_column",
        "caption_column",
        "delimiter",
        "recaption_column",
        "sha256_column",
        "image_folder",
    )

    def __init__(
        self,
        path: str | Path,
        image_column: str = "image",
        caption_column: str = "caption",
        delimiter: str | None = None,
        recaption_column: str | None = None,
        image_folder: str | None = None,
        sha256_column: str | None = None,
    ):
        super().__init__(path, image_folder)
        self.image_column, self.caption_column = image_column, caption_column
        self.recaption_column, self.sha256_column = recaption_column, sha256_column
        self.delimiter = delimiter or ("\t" if self.file_name.lower().endswith((".tsv", ".tab")) else ",")

    def check(self) -> int:
        if self.folder.kind(self.file_name) != "file":
            raise SourceError(
                f"{self.folder.setting}: there is no table {self.address}. Set it to your .csv or .tsv file"
            )
        return self.count(
            f"its column {self.caption_column!r}",
            "Fill it, or set data.caption_column to the column with the captions",
        )

    def rows(self) -> Iterator[Row]:
        with self.folder.local_copy(self.file_name) as path, open(path, "rb") as file:
            yield from self._rows(file)

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        quoting = csv.QUOTE_NONE if self.delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(self._lines(file), delimiter=self.delimiter, quoting=quoting, strict=True)
        try:
            header = next(rows, [])
            image, caption = self._column(header, "image_column"), self._column(header, "caption_column")
            recaption, digest = (
                self._column(header, name) if getattr(self, name) is not None else None
                for name in ("recaption_column", "sha256_column")
            )
            for row in filter(None, rows):
                try:
                    yield self._row(row, header, image, caption, recaption, digest)
                except InvalidInput as problem:
                    yield Row(f"line {rows.line_num}", problem=problem)
        except csv.Error as error:
            where = f"{self.address}, line {rows.line_num}"
            raise SourceError(f"{where}: {error}. Fix the quotes or line ends") from error

    def _row(
        self,
        row: list[str],
        header: list[str],
        image: int,
        caption: int,
        recaption: int | None,
        digest: int | None,
    ) -> Row:
        if len(row) != len(header):
            raise InvalidInput("bad_row", f"{len(row)} fields where the header has {len(header)}")
        name = image_name(row[image], f"column {self.image_column!r}")
        recaptions, digests = (() if column is None else (row[column],) for column in (recaption, digest))
        return Row(name, (row[caption],), recaptions, digests)

    def _column(self, header: list[str], setting: str) -> int:
        column = getattr(self, setting)
        if column not in header:
            columns = ", ".join(map(ascii, header)) or "none"
            raise SourceError(
                f"{self.address} has no column {column!r}, only {columns}. Set data.{setting} "
                f"(or data.delimiter, now {self.delimiter!r}; the text must be UTF-8)"
            )
        return header.index(column)

    def _lines(self, file: BinaryIO) -> Iterator[str]:
        """Lines as text; bytes that are not UTF-8 become surrogates, for which the row is rejected later."""
        number, line = 1, file.readline(MAX_CAPTION_BYTES).removeprefix(b"\xef\xbb\xbf")
        while line:
            if len(line) == MAX_CAPTION_BYTES:
                limit = f"{MAX_CAPTION_BYTES:,} bytes"
                raise SourceError(f"{self.address}, line {number}: over {limit}. Check that it is a table")
            yield line.decode("utf-8", "surrogateescape")
            number, line = number + 1, file.readline(MAX_CAPTION_BYTES)
