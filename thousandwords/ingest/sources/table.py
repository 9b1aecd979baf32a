"""Lists of image paths and captions: CSV and TSV tables, JSON lines; base of COCO and Parquet.

Paths are relative to the list, or to `data.image_folder`. Several rows of one image are several captions of one pair.
JSON may also be one list of objects, or one object that gives each image's name its captions.
"""

import ast
import contextlib
import csv
import io
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.archive import ARCHIVES
from thousandwords.ingest.sources.base import (
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    OTHER_IMAGES,
    UTF16_MARKS,
    RawPair,
    Source,
    SourceError,
    as_texts,
    clean_captions,
    json_object,
    key_of,
    read_raw_pair,
    suffix_of,
)
from thousandwords.ingest.sources.filesystem import check_not_pointer, open_folder, open_parent_folder
from thousandwords.ingest.sources.local_folder import Folder

MAX_JSON = (
    500_000_000  # bytes of one JSON value; the captions of COCO's 118,287 training images take 92 million
)
MAX_LISTED = 40_000  # characters of a list in a field; Python's parser may need seconds for more
NO_VALUE = ("nan", "none", "null", "n/a")  # as pandas and databases write a field without a value
DOWNLOAD = (
    "Download the images first, for example with img2dataset, then set data.path to the folder of its tars "
    "(data.source: webdataset)"
)


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
    settings += ("link_roots",)
    file_type = "file", "your .jsonl file"  # for messages: what is missing, what to set
    column_word = "column"
    captions_word = "its column {!r}"
    fix = "Fill it, or set data.caption_column to the column with the captions"

    def __init__(
        self,
        path: str | Path,
        image_folder: str | None = None,
        link_roots: Sequence[str] = (),
        **columns: str | None,
    ):
        columns = {"image_column": "image", "caption_column": "caption", **columns}
        self.columns = {setting: column for setting, column in columns.items() if column is not None}
        self.folder, self.file_name = open_parent_folder(path, link_roots)
        self.image_folder = open_image_folder(self.folder, image_folder, link_roots)
        self.listed: set[str] = set()  # names of the images of the rows that were read

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
        check_not_pointer(self.folder, self.file_name)
        return self.count()

    def count(self) -> int:
        """The number of images and bad rows; raises SourceError if there is no valid row, or no caption."""
        names: dict[str, InvalidInput | None] = {}
        has_caption = False
        for row in self.rows():
            names.setdefault(row.image, row.problem)
            has_caption |= any(text.strip() for text in row.captions)
        problems = [problem for problem in names.values() if problem]
        if names and len(problems) == len(names) and all("has the URL" in each.detail for each in problems):
            raise SourceError(
                f"{self.address}: {self.column_word} {self.columns['image_column']!r} holds URLs, and nothing is "
                f"fetched from a list. {DOWNLOAD}"
            )
        if len(problems) == len(names):
            first = f" ({problems[0].detail})" if problems else ""
            raise SourceError(
                f"{self.address} has no row with an image and a caption. Add one per image{first}"
            )
        if not has_caption:
            raise self.no_captions()
        listed = [name for name, problem in names.items() if problem is None]
        self._check_images(listed[: 20 if self.image_folder.parallel_reads else 200])
        return len(names)

    def _check_images(self, names: list[str]) -> None:
        """Raise SourceError if none of these first images is there: the folder is wrong, not the data."""
        is_absolute = re.compile("$." if self.image_folder.parallel_reads else r"/|[A-Za-z]:[/\\]").match
        names = [name for name in names if _is_inside(name) or is_absolute(name)]
        if names and all(self.image_folder.kind(name) is None for name in names):
            if all(map(is_absolute, names)):
                fix = "Such a path holds on one machine only: write the paths relative to the list"
            else:
                packed = [name for name in self.folder.walk(1) if name.lower().endswith(ARCHIVES)]
                fix = f"Unpack {packed[0]}, or set" if packed else "Set"
                fix += (
                    " data.image_folder to the folder that the list's paths start from, relative to the list"
                )
            raise SourceError(
                f"There are no images of {self.address} in {self.image_folder.address}: no {names[0][:100]}. {fix}"
            )
        for name in names[:1]:
            check_not_pointer(self.image_folder, name)

    def whole_json(self) -> bytes:
        """The bytes of a file that is one JSON value; SourceError if they are too many."""
        if (size := self.folder.size(self.file_name)) > MAX_JSON:
            raise SourceError(
                f"{self.address} is one JSON value of {size:,} bytes; the limit is {MAX_JSON:,}. "
                "Write JSON lines, one object a line, which are read one by one (data.source: jsonl)"
            )
        with self.folder.local_copy(self.file_name) as path:
            return path.read_bytes().removeprefix(b"\xef\xbb\xbf")

    def images_beside(self) -> tuple[set[str], set[str]]:
        folder = self.image_folder
        # images within the table have nothing to do with those beside it; and to list a URL may take long
        if folder.parallel_reads or not self.listed:
            return set(), set()
        address = os.path.normpath(folder.address)
        found = {name for name in folder.walk() if suffix_of(name) in IMAGE_SUFFIXES}
        listed, found = ({os.path.join(address, name) for name in names} for names in (self.listed, found))
        return {os.path.normpath(name) for name in listed}, found

    def no_captions(self) -> SourceError:
        captions = self.captions_word.format(self.columns["caption_column"])
        return SourceError(f"{self.address} has no captions: {captions} is empty. {self.fix}")

    def rows(self) -> Iterator[Row]:
        for position, values in self.records():
            try:
                if isinstance(values, InvalidInput):
                    raise values
                image = self.image_path(values)
                self.listed.add(image)
                yield Row(
                    image,
                    self.texts(values, "caption_column"),
                    self.texts(values, "recaption_column"),
                    self.texts(values, "sha256_column"),
                )
            except InvalidInput as problem:
                yield Row(position, problem=problem)

    def image_path(self, values: dict) -> str:
        column = self.columns["image_column"]
        value = values.get(column)
        value = (
            value.get("path") if isinstance(value, dict) else value
        )  # as the library datasets writes an image
        name = image_name(value, f"{self.column_word} {column!r}")
        return self.existing(name)

    def existing(self, name: str) -> str:
        """The name, or the one of `spellings` that is there."""
        names = spellings(name)
        if len(names) == 1 or self.image_folder.kind(name) == "file":
            return name
        return next(
            (other for other in names if _is_inside(other) and self.image_folder.kind(other) == "file"), name
        )

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

    settings = (*TableSource.settings, "delimiter", "columns")
    file_type = "table", "your .csv or .tsv file"

    def __init__(
        self,
        path: str | Path,
        *,
        delimiter: str | None = None,
        columns: Sequence[str] = (),
        **settings: object,
    ):
        super().__init__(path, **settings)
        self.delimiter = delimiter or ("\t" if self.file_name.lower().endswith((".tsv", ".tab")) else ",")
        self.header = [*columns]  # of a table without one

    def records(self) -> Iterator[tuple[str, dict | InvalidInput]]:
        quoting = csv.QUOTE_NONE if self.delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(self._lines(), delimiter=self.delimiter, quoting=quoting, strict=True)
        try:
            header = self.header or [name.strip() for name in next(rows, [])]
            hint = (
                f" (or data.delimiter, now {self.delimiter!r}; the text must be UTF-8). The first line is taken for "
                "the header; for a table without one, set data.columns: [image, caption]"
            )
            if self.header:
                hint = ", one of data.columns"
            for setting in self.columns:
                self.check_column(setting, header, "column", hint)
            for row in filter(None, rows):
                if header[-1] == self.columns["caption_column"]:
                    row = _with_whole_caption(row, len(header), self.delimiter)
                detail = f"{len(row)} fields where the header has {len(header)}"
                if len(row) > len(header):
                    detail += f"; quote captions that hold a {self.delimiter!r}"
                problem = InvalidInput("bad_row", detail)
                # reversed: of two columns of the same name, the first counts
                values = dict(zip(reversed(header), reversed(row), strict=False))
                yield f"line {rows.line_num}", values if len(row) == len(header) else problem
        except csv.Error as error:
            where = f"{self.address}, line {rows.line_num}"
            raise SourceError(f"{where}: {error}. Fix the quotes or line ends") from error

    def texts(self, values: dict, setting: str) -> tuple[str, ...]:
        """The texts of a field: "['a', 'b']", as pandas writes a list, are two, and what stands for no value is none."""
        texts = [text for field in super().texts(values, setting) for text in _listed_texts(field)]
        return tuple(text for text in texts if text.strip().lower() not in NO_VALUE)

    def _lines(self) -> Iterator[str]:
        """Lines as text; bytes that are not UTF-8 become surrogates, for which the row is rejected later."""
        for number, line in lines_of(self.folder, self.file_name):
            if line is None:
                limit = f"{MAX_CAPTION_BYTES:,} bytes"
                raise SourceError(f"{self.address}, line {number}: over {limit}. Check that it is a table")
            yield line.decode("utf-8", "surrogateescape")


class JsonLinesSource(TableSource):
    """A file with a JSON object per line, or one list of objects, or one object of captions by image name."""

    column_word = "key"
    captions_word = "{!r} of every line"
    fix = "Fill it, or set data.caption_column to the key of the captions"

    def count(self) -> int:
        self._check_keys()
        return super().count()

    def records(self) -> Iterator[tuple[str, dict | InvalidInput]]:
        if (values := self._whole()) is not None:
            for number, value in enumerate(values):
                is_object = isinstance(value, dict)
                yield f"[{number}]", value if is_object else InvalidInput("bad_row", "not a JSON object")
            return
        for number, line in lines_of(self.folder, self.file_name):
            if line is None or line.strip():
                yield f"line {number}", _json_record(line)

    def _whole(self) -> list | None:
        """The objects of a file that is one JSON list or object; None for JSON lines, which are read one by one."""
        lines = (line for _, line in lines_of(self.folder, self.file_name) if line is None or line.strip())
        first, second = next(lines, None), next(lines, None)
        if first is None or first.lstrip()[:1] not in (b"[", b"{"):
            return None
        is_line, value = _parse(first)
        if is_line and (second is not None or isinstance(value, dict) and not self._is_whole(value)):
            return None
        is_whole, value = _parse(self.whole_json())
        if is_whole and isinstance(value, list):
            return value
        if is_whole and isinstance(value, dict):
            return self._of_object(value)
        if first.lstrip().startswith(b"["):
            raise SourceError(
                f"{self.address} begins like one JSON list, but is not, or is truncated. Fetch it again"
            )
        return None

    def _of_object(self, value: dict) -> list:
        """{"a.png": "a cat", …} as one object for each image; else the longest list of objects in it, and
        those of the same keys: {"train": […], "val": […]}."""
        image, caption = self.columns["image_column"], self.columns["caption_column"]
        if self._is_by_name(value):
            return [
                {image: name, **(entry if isinstance(entry, dict) else {caption: entry})}
                for name, entry in value.items()
            ]
        lists = [entry for entry in value.values() if isinstance(entry, list) and _keys(entry)]
        longest = max(lists, key=len, default=[value])
        return [row for rows in lists if _keys(rows) == _keys(longest) for row in rows] or longest

    def _is_whole(self, value: dict) -> bool:
        """Whether an object on one line is all of the list, and not a row: by name, or around a list of objects."""
        if self._is_by_name(value):
            return True
        names_image = any(suffix_of(str(entry)) in IMAGE_SUFFIXES for entry in value.values())
        lists = [entry for entry in value.values() if isinstance(entry, list) and entry]
        return not names_image and any(isinstance(entry[0], dict) for entry in lists)

    def _is_by_name(self, value: dict) -> bool:
        """Whether the keys are names of images, with or without their suffix: {"a.png": …} or {"a": {"caption": …}}."""
        if value and all(suffix_of(name) in IMAGE_SUFFIXES for name in value):
            return True
        if value and all(isinstance(entry, dict) for entry in value.values()):
            return True
        names = list(value)[:20]
        return bool(names) and all(self.existing(os.path.normpath(name)) != name for name in names)

    def image_path(self, values: dict) -> str:
        """In Karpathy's splits an image's folder is beside its name: {"filepath": "val2014", "filename": "a.jpg"}."""
        name, folder = super().image_path(values), values.get("filepath")
        if (
            not isinstance(folder, str)
            or self.columns["image_column"] != "filename"
            or self.image_folder.kind(name)
        ):
            return name
        return self.existing(os.path.normpath(os.path.join(folder, name)))

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


def _listed_texts(field: str) -> tuple[str, ...]:
    """The texts of a list that is written as JSON or by Python, else the field itself: '["a", "b"]' -> ("a", "b")."""
    if not field.startswith("[") or len(field) > MAX_LISTED:
        return (field,)
    with_commas = re.sub(r"(['\"])\s+(['\"])", r"\1, \2", field)  # numpy writes none
    for parse, text in ((json.loads, field), (ast.literal_eval, with_commas)):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if texts := as_texts(parse(text)):
                return texts
    return (field,)


def _with_whole_caption(row: list[str], count: int, delimiter: str) -> list[str]:
    """The fields of a row whose last one is a caption: ["a.png", "a bee", " a tree"] -> ["a.png", "a bee, a tree"]."""
    if len(row) <= count or not all(field.startswith(" ") for field in row[count:]):
        return row
    return [*row[: count - 1], delimiter.join(row[count - 1 :])]


def _keys(rows: list) -> set:
    return set(rows[0]) if rows and isinstance(rows[0], dict) else set()


def _parse(data: bytes) -> tuple[bool, object]:
    """(whether the bytes are JSON, their value)."""
    try:
        return True, json.loads(data)
    except (ValueError, RecursionError):
        return False, None


def _is_inside(name: str) -> bool:
    return not name.startswith(("/", "..", "[", "line "))


def _json_record(line: bytes | None) -> dict | InvalidInput:
    if line is None:
        return InvalidInput("too_many_bytes", f"a line over {MAX_CAPTION_BYTES:,} bytes")
    try:
        return json_object(line)
    except ValueError as error:
        return InvalidInput("bad_row", f"not a JSON object: {error}")


def lines_of(folder: Folder, name: str) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of each line of a file; None for a line over the limit, which is skipped in pieces."""
    with folder.local_copy(name) as path, _open_as_utf8(path) as file:
        number, line = 1, file.readline(MAX_CAPTION_BYTES).removeprefix(b"\xef\xbb\xbf")
        while line:
            is_long = len(line) == MAX_CAPTION_BYTES and not line.endswith(b"\n")
            if number > 1 or not re.fullmatch(rb"sep=.\s*", line):  # Excel's name of the delimiter
                yield number, None if is_long else line
            while is_long and (piece := file.readline(MAX_CAPTION_BYTES)) and not piece.endswith(b"\n"):
                pass
            number, line = number + 1, file.readline(MAX_CAPTION_BYTES)


def _open_as_utf8(path: Path) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115 - who reads it closes it
    is_utf16 = file.read(2) in UTF16_MARKS
    file.seek(0)
    return io.BytesIO(file.read().decode("utf-16", "replace").encode()) if is_utf16 else file


def spellings(name: str) -> list[str]:
    """The names that one in a list may stand for: of a Windows path, an image with the number of its caption
    (a.jpg#2), or a name without its suffix."""
    names = [name, os.path.normpath(name.replace("\\", "/")), re.sub(r"#\d+$", "", name)]
    if suffix_of(names[1]) not in (*IMAGE_SUFFIXES, *OTHER_IMAGES) and names[2] == name:
        names += [f"{names[1]}.{suffix}" for suffix in IMAGE_SUFFIXES]
    return list(dict.fromkeys(names))


def image_name(value: object, field: str) -> str:
    """The relative path in a field, "./a//b.png" -> "a/b.png"; raises InvalidInput if there is none."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    text = value.strip() if isinstance(value, str) else str(value) if is_number else ""
    # JSON can spell half of a surrogate pair, which is in no file name
    if not text or "\0" in text or re.search("[\ud800-\udc7f\udd00-\udfff]", text):
        raise InvalidInput("missing_pair", f"{field} names no image")
    if "://" in text:
        raise InvalidInput(
            "unsafe_path", f"{field} has the URL {text}; URLs in a list are not fetched. Download it first"
        )
    return os.path.normpath(text)


def open_image_folder(folder: Folder, image_folder: str | None, link_roots: Sequence[str] = ()) -> Folder:
    """Open the folder of the images of a list that is in `folder`."""
    if image_folder is None:
        return folder
    if "://" in image_folder or os.path.isabs(image_folder):
        return open_folder(image_folder, link_roots)
    protocol, mark, path = folder.address_of(image_folder).rpartition("://")
    normalized = posixpath.normpath(path) if mark else path  # a URL cannot contain ..
    return open_folder(f"{protocol}{mark}{normalized}", link_roots)
