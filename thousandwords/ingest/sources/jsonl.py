"""JSON lines: each line an object with a picture path, relative to the file's folder, and a caption or a list of them.

A broken line is refused by itself, for the next one begins after the next line end. Left out: compressed files.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from thousandwords.images import Refused
from thousandwords.sources._contract import MAX_CAPTION_BYTES, json_object, texts_in
from thousandwords.sources._listed import ListSource, Row, picture_name
from thousandwords.tars import SourceError


class JsonLinesSource(ListSource):
    """Several lines of one picture are several captions; blank lines are skipped."""

    settings = ("image_column", "caption_column", "recaption_column", "sha256_column", "image_folder")

    def __init__(self, path: str | Path, image_column: str = "image", caption_column: str = "caption",
                 recaption_column: str | None = None, image_folder: str | None = None, sha256_column: str | None = None):
        super().__init__(path, image_folder)
        self.sha256_column = sha256_column
        self.image_column, self.caption_column, self.recaption_column = image_column, caption_column, recaption_column

    def check(self) -> int:
        if self.place.kind(self.file) != "file":
            raise SourceError(f"{self.place.setting}: there is no file {self.address}. Set it to your .jsonl file")
        self._check_keys()
        return self.count(f"{self.caption_column!r} of every line",
                          "Fill it, or set data.caption_column to the key that holds them")

    def rows(self) -> Iterator[Row]:
        for number, line in self._lines():
            try:
                yield self._row(line)
            except Refused as problem:
                yield Row(f"line {number}", problem=problem)

    def _row(self, line: bytes | None) -> Row:
        if line is None:
            raise Refused("too_many_bytes", f"a line over {MAX_CAPTION_BYTES:,} bytes")
        try:
            found = json_object(line)
        except ValueError as error:
            raise Refused("bad_row", f"no JSON object: {error}") from error
        picture = picture_name(found.get(self.image_column), f"key {self.image_column!r}")
        columns = (self.caption_column, self.recaption_column, self.sha256_column)
        return Row(picture, *(self._texts(found, column) for column in columns))

    def _texts(self, found: dict, key: str | None) -> tuple[str, ...]:
        texts = texts_in(found.get(key))
        if texts is None:
            raise Refused("bad_row", f"{key!r} is neither a text nor a list of texts")
        return texts

    def _check_keys(self) -> None:
        """SourceError if no line has a picture, or none a recaption or sha256: then the setting is wrong, not the data."""
        wanted = {name: getattr(self, name) for name in ("image_column", "recaption_column", "sha256_column")}
        seen = set()
        for _, line in self._lines():
            try:
                seen |= json_object(line or b"").keys()
            except ValueError:
                continue
            if seen.issuperset(filter(None, wanted.values())):
                return
        for setting, key in wanted.items():
            if key is not None and key not in seen:
                keys = ", ".join(map(ascii, sorted(seen)[:20])) or "none"
                raise SourceError(f"{self.address} has no line with the key {key!r}, only {keys}. Set data.{setting}")

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        """(number, line) of each that is not blank; None stands for a line that is too long to be read."""
        with self.place.on_disk(self.file) as path, open(path, "rb") as file:
            number, line = 1, file.readline(MAX_CAPTION_BYTES).removeprefix(b"\xef\xbb\xbf")
            while line:
                if len(line) == MAX_CAPTION_BYTES and not line.endswith(b"\n"):
                    _skip_line(file)
                    yield number, None
                elif line.strip():
                    yield number, line
                number, line = number + 1, file.readline(MAX_CAPTION_BYTES)


def _skip_line(file: BinaryIO) -> None:
    """To the start of the next line, in pieces."""
    while (piece := file.readline(MAX_CAPTION_BYTES)) and not piece.endswith(b"\n"):
        pass
