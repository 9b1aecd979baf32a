"""JSON lines: each line is an object with an image path, relative to the file, and one or more captions.

A bad line is rejected alone; reading goes on after the next line end. Left out: compressed files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import MAX_CAPTION_BYTES, SourceError, as_texts, json_object
from thousandwords.ingest.sources.listing import ListSource, Row, image_name


class JsonLinesSource(ListSource):
    """Several lines of an image are several captions; blank lines are skipped."""

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
        super().__init__(path, image_folder)
        self.image_column, self.caption_column = image_column, caption_column
        self.recaption_column, self.sha256_column = recaption_column, sha256_column

    def check(self) -> int:
        if self.folder.kind(self.file_name) != "file":
            raise SourceError(
                f"{self.folder.setting}: there is no file {self.address}. Set it to your .jsonl file"
            )
        self._check_keys()
        return self.count(
            f"{self.caption_column!r} of every line",
            "Fill it, or set data.caption_column to the key of the captions",
        )

    def rows(self) -> Iterator[Row]:
        for number, line in self._lines():
            try:
                yield self._row(line)
            except InvalidInput as problem:
                yield Row(f"line {number}", problem=problem)

    def _row(self, line: bytes | None) -> Row:
        if line is None:
            raise InvalidInput("too_many_bytes", f"a line over {MAX_CAPTION_BYTES:,} bytes")
        try:
            fields = json_object(line)
        except ValueError as error:
            raise InvalidInput("bad_row", f"not a JSON object: {error}") from error
        image = image_name(fields.get(self.image_column), f"key {self.image_column!r}")
        columns = (self.caption_column, self.recaption_column, self.sha256_column)
        return Row(image, *(self._texts(fields, column) for column in columns))

    def _texts(self, fields: dict, key: str | None) -> tuple[str, ...]:
        texts = as_texts(fields.get(key))
        if texts is None:
            raise InvalidInput("bad_row", f"{key!r} is neither a text nor a list of texts")
        return texts

    def _check_keys(self) -> None:
        """Raise SourceError if a configured key is in no line: then the setting is wrong, not the data."""
        columns = {
            name: getattr(self, name) for name in ("image_column", "recaption_column", "sha256_column")
        }
        keys = set()
        for _, line in self._lines():
            try:
                keys |= json_object(line or b"").keys()
            except ValueError:
                continue
            if keys.issuperset(filter(None, columns.values())):
                return
        for setting, column in columns.items():
            if column is not None and column not in keys:
                available = ", ".join(map(ascii, sorted(keys)[:20])) or "none"
                raise SourceError(
                    f"{self.address} has no line with the key {column!r}, only {available}. Set data.{setting}"
                )

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        """(number, line) of each line that is not blank; the line is None if it is too long."""
        with self.folder.local_copy(self.file_name) as path, open(path, "rb") as file:
            number, line = 1, file.readline(MAX_CAPTION_BYTES).removeprefix(b"\xef\xbb\xbf")
            while line:
                if len(line) == MAX_CAPTION_BYTES and not line.endswith(b"\n"):
                    _skip_line(file)
                    yield number, None
                elif line.strip():
                    yield number, line
                number, line = number + 1, file.readline(MAX_CAPTION_BYTES)


def _skip_line(file: BinaryIO) -> None:
    """Seek to the start of the next line, reading in pieces."""
    while (piece := file.readline(MAX_CAPTION_BYTES)) and not piece.endswith(b"\n"):
        pass
