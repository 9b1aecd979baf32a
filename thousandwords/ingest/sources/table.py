"""Lists of image paths and captions: CSV and TSV tables, JSON lines; base of COCO and Parquet.

Paths are relative to the list, or to `data.image_folder`. Several rows of one image are several captions of one pair.
"""

import csv
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import (
    MAX_CAPTION_BYTES,
    RawPair,
    Source,
    SourceError,
    as_texts,
    clean_captions,
    json_object,
    key_of,
    read_raw_pair,
)
from thousandwords.ingest.sources.filesystem import Folder, open_folder, open_parent_folder


@dataclass(frozen=True)
class Row:
    """One row of a list; a row that cannot be used has its position as `image`, and a problem."""

    image: str
    captions: tuple[str, ...] = ()
    recaptions: tuple[str, ...] = ()
    digests: tuple[object, ...] = ()  # sha256 values that the list gives for the image file
    problem: InvalidInput | None = None


class TableSource(Source):
    """Rows with columns for the image, the captions and more. A kind of table defines `records`."""

    settings = ("image_column", "caption_column", "recaption_column", "sha256_column", "image_folder")
    file_type = "file", "your .jsonl file"  # for messages: what is missing, what to set
    column_word = "column"
    captions_word = "its column {!r}"
    fix = "Fill it, or set data.caption_column to the column with the captions"

    def __init__(self, path: str | Path, image_folder: str | None = None, **columns: str | None):
        columns = {"image_column": "image", "caption_column": "caption", **columns}
        self.columns = {setting: column for setting, column in columns.items() if column is not None}
        self.folder, self.file_name = open_parent_folder(path)
        self.image_folder = open_image_folder(self.folder, image_folder)

    def records(self) -> Iterator[tuple[str, dict | InvalidInput]]:
        """(position, values by column, or why there are none) of each row; SourceError if the rest is not reliable."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        return self.folder.address_of(self.file_name)

    def check(self) -> int:
        if self.folder.kind(self.file_name) != "file":
            missing, wanted = self.file_type
            raise SourceError(
                f"{self.folder.setting}: there is no {missing} {self.address}. Set it to {wanted}"
            )
        return self.count()

    def count(self) -> int:
        """The number of images and bad rows; raises SourceError if there is no valid row, or no caption."""
        names, has_valid_row, has_caption = set(), False, False
        for row in self.rows():
            names.add(row.image)
            has_valid_row |= row.problem is None
            has_caption |= any(text.strip() for text in row.captions)
        if not has_valid_row:
            raise SourceError(f"{self.address} has no row with an image and a caption. Add one per image")
        if not has_caption:
            raise self.no_captions()
        return len(names)

    def no_captions(self) -> SourceError:
        captions = self.captions_word.format(self.columns["caption_column"])
        return SourceError(f"{self.address} has no captions: {captions} is empty. {self.fix}")

    def rows(self) -> Iterator[Row]:
        for position, values in self.records():
            try:
                if isinstance(values, InvalidInput):
                    raise values
                yield Row(
                    self.image_path(values),
                    self.texts(values, "caption_column"),
                    self.texts(values, "recaption_column"),
                    self.texts(values, "sha256_column"),
                )
            except InvalidInput as problem:
                yield Row(position, problem=problem)

    def image_path(self, values: dict) -> str:
        column = self.columns["image_column"]
        return image_name(values.get(column), f"{self.column_word} {column!r}")

    def texts(self, values: dict, setting: str) -> tuple[str, ...]:
        """The text or texts of a column, () if it is not set."""
        if setting not in self.columns:
            return ()
        texts = as_texts(values.get(self.columns[setting]))
        if texts is None:
            raise InvalidInput("bad_row", f"{self.columns[setting]!r} is neither a text nor a list of texts")
        return texts

    def check_column(self, setting: str, available: Iterable[str], message: str, hint: str = "") -> None:
        """Raise SourceError if the column of a setting is not available: the setting is wrong, not the data."""
        if self.columns.get(setting) not in (None, *available):
            names = ", ".join(map(ascii, available)) or "none"
            raise SourceError(
                f"{self.address} has no {message} {self.columns[setting]!r}, only {names}. Set data.{setting}{hint}"
            )

    def __iter__(self) -> Iterator[RawPair]:
        return self.image_folder.read_each(self._read, self._rows_by_image())

    def _rows_by_image(self) -> Iterator[Row]:
        """One row per image, in the order of first appearance."""
        rows_of: dict[str, list[Row]] = {}
        for row in self.rows():
            rows_of.setdefault(row.image, []).append(row)
        for image, rows in rows_of.items():
            captions = tuple(text for row in rows for text in row.captions)
            recaptions = tuple(text for row in rows for text in row.recaptions)
            digests = tuple(dict.fromkeys(digest for row in rows for digest in row.digests))
            problem = next((row.problem for row in rows if row.problem), None)
            yield Row(image, captions, recaptions, digests, problem)

    def _read(self, row: Row) -> RawPair:
        key, provenance = key_of(row.image), key_of(f"{self.file_name}/{row.image}")
        if row.problem:
            return RawPair(key, None, (), provenance, row.problem)
        return read_raw_pair(
            key,
            provenance,
            lambda: self.image_folder.read_image(row.image),
            lambda: clean_captions(row.captions),
            row.recaptions,
            row.digests,
        )


class CsvSource(TableSource):
    """A table whose fields may be quoted, except in a tab-separated one."""

    settings = (*TableSource.settings, "delimiter")
    file_type = "table", "your .csv or .tsv file"

    def __init__(self, path: str | Path, *, delimiter: str | None = None, **settings: str | None):
        super().__init__(path, **settings)
        self.delimiter = delimiter or ("\t" if self.file_name.lower().endswith((".tsv", ".tab")) else ",")

    def records(self) -> Iterator[tuple[str, dict | InvalidInput]]:
        quoting = csv.QUOTE_NONE if self.delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(self._lines(), delimiter=self.delimiter, quoting=quoting, strict=True)
        try:
            header = next(rows, [])
            hint = f" (or data.delimiter, now {self.delimiter!r}; the text must be UTF-8)"
            for setting in self.columns:
                self.check_column(setting, header, "column", hint)
            for row in filter(None, rows):
                problem = InvalidInput("bad_row", f"{len(row)} fields where the header has {len(header)}")
                # reversed: of two columns of the same name, the first counts
                values = dict(zip(reversed(header), reversed(row), strict=False))
                yield f"line {rows.line_num}", values if len(row) == len(header) else problem
        except csv.Error as error:
            where = f"{self.address}, line {rows.line_num}"
            raise SourceError(f"{where}: {error}. Fix the quotes or line ends") from error

    def _lines(self) -> Iterator[str]:
        """Lines as text; bytes that are not UTF-8 become surrogates, for which the row is rejected later."""
        for number, line in lines_of(self.folder, self.file_name):
            if line is None:
                limit = f"{MAX_CAPTION_BYTES:,} bytes"
                raise SourceError(f"{self.address}, line {number}: over {limit}. Check that it is a table")
            yield line.decode("utf-8", "surrogateescape")


class JsonLinesSource(TableSource):
    """A file with a JSON object per line; blank lines are skipped."""

    column_word = "key"
    captions_word = "{!r} of every line"
    fix = "Fill it, or set data.caption_column to the key of the captions"

    def count(self) -> int:
        self._check_keys()
        return super().count()

    def records(self) -> Iterator[tuple[str, dict | InvalidInput]]:
        for number, line in lines_of(self.folder, self.file_name):
            if line is None or line.strip():
                yield f"line {number}", _json_record(line)

    def _check_keys(self) -> None:
        """Raise SourceError if a configured key is in no line."""
        settings = [setting for setting in self.columns if setting != "caption_column"]
        keys = set()
        for _, values in self.records():
            keys |= values.keys() if isinstance(values, dict) else set()
            if keys.issuperset(self.columns[setting] for setting in settings):
                return
        for setting in settings:
            self.check_column(setting, sorted(keys)[:20], "line with the key")


def _json_record(line: bytes | None) -> dict | InvalidInput:
    if line is None:
        return InvalidInput("too_many_bytes", f"a line over {MAX_CAPTION_BYTES:,} bytes")
    try:
        return json_object(line)
    except ValueError as error:
        return InvalidInput("bad_row", f"not a JSON object: {error}")


def lines_of(folder: Folder, name: str) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of each line of a file; None for a line over the limit, which is skipped in pieces."""
    with folder.local_copy(name) as path, open(path, "rb") as file:
        number, line = 1, file.readline(MAX_CAPTION_BYTES).removeprefix(b"\xef\xbb\xbf")
        while line:
            is_long = len(line) == MAX_CAPTION_BYTES and not line.endswith(b"\n")
            yield number, None if is_long else line
            while is_long and (piece := file.readline(MAX_CAPTION_BYTES)) and not piece.endswith(b"\n"):
                pass
            number, line = number + 1, file.readline(MAX_CAPTION_BYTES)


def image_name(value: object, field: str) -> str:
    """The relative path in a field, "./a//b.png" -> "a/b.png"; raises InvalidInput if there is none."""
    text = value.strip() if isinstance(value, str) else ""
    # JSON can spell half of a surrogate pair, which is in no file name
    if not text or "\0" in text or re.search("[\ud800-\udc7f\udd00-\udfff]", text):
        raise InvalidInput("missing_pair", f"{field} names no image")
    if "://" in text:
        raise InvalidInput(
            "unsafe_path", f"{field} has the URL {text}; URLs in a list are not fetched. Download it first"
        )
    return os.path.normpath(text)


def open_image_folder(folder: Folder, image_folder: str | None) -> Folder:
    """Open the folder of the images of a list that is in `folder`."""
    if image_folder is None:
        return folder
    if "://" in image_folder or os.path.isabs(image_folder):
        return open_folder(image_folder)
    protocol, mark, path = folder.address_of(image_folder).rpartition("://")
    normalized = posixpath.normpath(path) if mark else path  # a URL cannot contain ..
    return open_folder(f"{protocol}{mark}{normalized}")
