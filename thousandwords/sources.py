"""Where captioned images come from: folder, table or WebDataset tars -> raw pairs, lazily, in a fixed order.

Nothing here decodes a picture. An input that can't be used becomes a RawPair with a `problem`, so that each
is counted once; what makes a whole source doubtful (a cut tar, an unclosed quote) raises SourceError, and
never just ends the source early. Links that lead out of a source, devices, pipes and files over 64 MB are
refused without reading them. Left out: Parquet, COCO JSON.
"""
from __future__ import annotations

import csv
import glob
import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from thousandwords.images import MAX_BYTES, Refused
from thousandwords.tars import Part, SourceError, read_part, samples_of

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "jpe", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTION = 4_000            # characters
MAX_CAPTION_BYTES = 1_000_000  # of a caption file, and of a line in a table


@dataclass(frozen=True)
class RawPair:
    """One input as found; `problem` says why it can't become a pair."""

    key: str
    image: bytes | None
    captions: tuple[str, ...]
    provenance: str
    problem: Refused | None = None


class Source(ABC):
    """Raw pairs of one place; iterating twice gives the same pairs in the same order."""

    @abstractmethod
    def check(self) -> int:
        """How many inputs there are; SourceError if no picture or no caption at all. Decodes nothing."""

    @abstractmethod
    def __iter__(self) -> Iterator[RawPair]: ...


# ---- captions


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Trimmed, without blank ones and repeats, in order: [" a cat", "", "a cat"] -> ("a cat",)."""
    captions = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not captions:
        raise Refused("caption_empty", "there is nothing but blanks")
    for caption in captions:
        if "\0" in caption or any("\ud800" <= character <= "\udfff" for character in caption):
            raise Refused("caption_encoding", f"no UTF-8 text: {ascii(caption[:60])}")
        if len(caption) > MAX_CAPTION:
            raise Refused("caption_too_long", f"{len(caption):,} characters; the limit is {MAX_CAPTION:,}")
    return captions


def captions_in_text(data: bytes) -> tuple[str, ...]:
    """The captions of a .txt file: one a line."""
    try:
        return clean_captions(data.decode("utf-8-sig").replace("\r\n", "\n").split("\n"))
    except UnicodeDecodeError as error:
        raise Refused("caption_encoding", f"no UTF-8 text: {error}") from error


def captions_in_json(data: bytes, name: str) -> tuple[str, ...]:
    """The captions under `name` in a JSON object: a text or a list of texts."""
    try:
        found = json.loads(data)[name]
    except (KeyError, TypeError) as error:
        raise Refused("missing_pair", f"there is no .txt, and no {name!r} in the .json") from error
    except (ValueError, RecursionError) as error:
        raise Refused("caption_encoding", f"the .json can't be read: {error}") from error
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused("caption_encoding", f"{name!r} in the .json is neither a text nor a list of texts")
    return clean_captions(texts)


# ---- files


def read_regular(path: Path, root: Path, limit: int) -> bytes:
    """The bytes of a plain file that lies, links followed, inside `root`; type and size are seen first."""
    try:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(root)):
            raise Refused("unsafe_path", f"{path.name} leads out of {root.name}")
        found = real.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Refused("not_regular", f"{path.name} is a folder, pipe, socket or device")
        if found.st_size > limit:
            raise Refused("too_many_bytes", f"{found.st_size:,} bytes; the limit is {limit:,}")
        return real.read_bytes()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise Refused("not_regular", f"{path.name} is a link to nothing") from error
        raise Refused("missing_pair", f"there is no {path.name}") from error
    except OSError as error:
        raise Refused("io_error", f"{path.name}: {error.strerror}") from error


def key_of(name: str) -> str:
    r"""A file name as a key that is UTF-8; no two names share one: b"caf\xe9" -> "caf\\xe9"."""
    return name.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _raw_pair(key: str, provenance: str, read_image: Callable[[], bytes],
              read_captions: Callable[[], tuple[str, ...]]) -> RawPair:
    """Both halves read; what refuses becomes the pair's problem."""
    image = None
    try:
        image = read_image()
        return RawPair(key, image, read_captions(), provenance)
    except Refused as problem:
        return RawPair(key, image, (), provenance, problem)


# ---- a folder


class FolderSource(Source):
    """Pictures anywhere under a folder, each with a .txt of its name beside it; hidden files are skipped."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def check(self) -> int:
        if not self.root.is_dir():
            raise SourceError(f"data.path: there is no folder {self.root}. Make it, or name another")
        inputs = list(self._inputs(self.root))
        pictures = [self.root / name for name, problem in inputs if problem is None]
        if not pictures:
            raise SourceError(f"{self.root} holds no pictures ({', '.join(IMAGE_SUFFIXES)}). "
                              "Put some there, each with a text file of its name, like cat.png and cat.txt")
        if not any(picture.with_suffix(".txt").exists() for picture in pictures):
            raise SourceError(f"None of the {len(pictures)} pictures in {self.root} has a caption. "
                              "Put a text file of its name beside each, like cat.txt beside cat.png")
        return len(inputs)

    def __iter__(self) -> Iterator[RawPair]:
        for name, problem in self._inputs(self.root):
            yield self._read(name, problem)

    def _read(self, name: str, problem: Refused | None) -> RawPair:
        key, provenance = key_of(name), key_of(f"{self.root.name}/{name}")
        if problem:
            return RawPair(key, None, (), provenance, problem)
        image, caption = self.root / name, (self.root / name).with_suffix(".txt")
        return _raw_pair(key, provenance, lambda: read_regular(image, self.root, MAX_BYTES),
                         lambda: captions_in_text(read_regular(caption, self.root, MAX_CAPTION_BYTES)))

    def _inputs(self, folder: Path) -> Iterator[tuple[str, Refused | None]]:
        """Names under the root, sorted folder by folder: the pictures, and what should have been one."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield os.path.relpath(folder, self.root), Refused("io_error", f"not listable: {error.strerror}")
            return
        pictured = {Path(entry.name).stem for entry in entries if _suffix(entry.name) in IMAGE_SUFFIXES}
        for entry in entries:
            name = os.path.relpath(entry.path, self.root)
            if entry.name.startswith("."):
                continue
            if _suffix(entry.name) in IMAGE_SUFFIXES:
                yield name, None
            elif entry.is_dir(follow_symlinks=False):
                yield from self._inputs(Path(entry.path))
            elif entry.is_dir():
                yield name, Refused("unsafe_path", "a link to a folder; such links are not followed")
            elif _suffix(entry.name) == "txt" and Path(entry.name).stem not in pictured:
                yield name, Refused("missing_pair", f"there is no picture beside {entry.name}")


# ---- a table


class TableSource(Source):
    """A table with a column of picture paths, relative to its folder, and one of captions.

    Several rows of one picture are several captions. Tab-separated tables know no quoting, others have CSV's.
    """

    def __init__(self, path: str | Path, image_column: str = "image", caption_column: str = "caption",
                 delimiter: str | None = None):
        self.path, self.image_column, self.caption_column = Path(path), image_column, caption_column
        self.delimiter = delimiter or ("\t" if self.path.suffix.lower() in (".tsv", ".tab") else ",")

    def check(self) -> int:
        if not self.path.is_file():
            raise SourceError(f"data.path: there is no table {self.path}. Set it to your .csv or .tsv file")
        rows = list(self._rows())
        if all(problem for _, _, problem in rows):
            raise SourceError(f"{self.path} has no row with a picture and a caption. Add one per picture")
        if not any(caption.strip() for _, caption, _ in rows):
            raise SourceError(f"{self.path} has no captions: its column {self.caption_column!r} is empty. "
                              "Fill it, or set data.caption_column to the column that holds them")
        return len({name for name, _, _ in rows})

    def __iter__(self) -> Iterator[RawPair]:
        captions, problems = {}, {}
        for name, caption, problem in self._rows():
            captions.setdefault(name, []).append(caption)
            problems[name] = problem
        for name, texts in captions.items():
            yield self._read(name, texts, problems[name])

    def _read(self, name: str, texts: list[str], problem: Refused | None) -> RawPair:
        key, provenance, folder = key_of(name), key_of(f"{self.path.name}/{name}"), self.path.parent
        if problem:
            return RawPair(key, None, (), provenance, problem)
        return _raw_pair(key, provenance, lambda: read_regular(folder / name, folder, MAX_BYTES),
                         lambda: clean_captions(texts))

    def _rows(self) -> Iterator[tuple[str, str, Refused | None]]:
        """(picture, caption, problem) of each row; a refused row has its line number for a picture."""
        quoting = csv.QUOTE_NONE if self.delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(self._lines(), delimiter=self.delimiter, quoting=quoting, strict=True)
        try:
            header = next(rows, [])
            picture, text = self._column(header, "image_column"), self._column(header, "caption_column")
            for row in filter(None, rows):
                if len(row) != len(header):
                    detail = f"{len(row)} fields where the header has {len(header)}"
                    yield f"line {rows.line_num}", "", Refused("bad_row", detail)
                elif not row[picture].strip() or "\0" in row[picture]:
                    detail = f"column {self.image_column!r} names no picture"
                    yield f"line {rows.line_num}", "", Refused("missing_pair", detail)
                else:
                    yield os.path.normpath(row[picture].strip()), row[text], None
        except csv.Error as error:
            where = f"{self.path}, line {rows.line_num}"
            raise SourceError(f"{where}: {error}. Mend the quotes or line ends") from error

    def _column(self, header: list[str], setting: str) -> int:
        wanted = getattr(self, setting)
        if wanted not in header:
            columns = ", ".join(map(ascii, header)) or "none"
            raise SourceError(f"{self.path} has no column {wanted!r}, only {columns}. Set data.{setting} "
                              f"(or data.delimiter, now {self.delimiter!r}; the text must be UTF-8)")
        return header.index(wanted)

    def _lines(self) -> Iterator[str]:
        """Lines as text; bytes that are no UTF-8 stay in it as surrogates, to be refused with their row."""
        with open(self.path, "rb") as file:
            number, line = 1, file.readline(MAX_CAPTION_BYTES).removeprefix(b"\xef\xbb\xbf")
            while line:
                if len(line) == MAX_CAPTION_BYTES:
                    limit = f"{MAX_CAPTION_BYTES:,} bytes"
                    raise SourceError(f"{self.path}, line {number}: over {limit}. Is it a table?")
                yield line.decode("utf-8", "surrogateescape")
                number, line = number + 1, file.readline(MAX_CAPTION_BYTES)


# ---- WebDataset


class WebDatasetSource(Source):
    """Tars whose members share a name up to the first dot: cat.png and cat.txt (else a caption in cat.json).

    `path` is one tar, a folder of them or a glob; `caption_name` is the key in the JSON.
    """

    SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json")

    def __init__(self, path: str | Path, caption_name: str = "caption"):
        self.path, self.caption_name = str(path), caption_name
        pattern = os.path.join(glob.escape(self.path), "*.tar") if os.path.isdir(self.path) else self.path
        found = [self.path] if os.path.isfile(self.path) else sorted(glob.glob(pattern))
        self.tars = [Path(tar) for tar in found if os.path.isfile(tar)]

    def check(self) -> int:
        if not self.tars:
            raise SourceError(f"data.path: there is no .tar file at {self.path}. "
                              "Set data.path to a tar, a folder of tars or a glob")
        samples = [parts.keys() for tar in self.tars for parts in samples_of(tar, self.SUFFIXES).values()]
        if all(parts.isdisjoint(IMAGE_SUFFIXES) for parts in samples):
            raise SourceError(f"The {len(self.tars)} tars at {self.path} hold no pictures. "
                              "Pack pictures and captions under one name, like cat.png and cat.txt")
        if all(parts.isdisjoint(("txt", "json")) for parts in samples):
            raise SourceError(f"The {len(self.tars)} tars at {self.path} hold no captions. "
                              "Pack a text or JSON of the same name with each picture, like cat.txt")
        return len(samples)

    def __iter__(self) -> Iterator[RawPair]:
        above = os.path.commonpath([tar.parent for tar in self.tars])
        for tar in self.tars:
            name = os.path.relpath(tar, above)
            with open(tar, "rb") as file:
                for stem, parts in samples_of(tar, self.SUFFIXES).items():
                    key = key_of(f"{name.removesuffix('.tar')}/{stem}")
                    yield self._read(file, parts, key, key_of(f"{name}/{stem}"))

    def _read(self, file: BinaryIO, parts: dict[str, Part], key: str, provenance: str) -> RawPair:
        return _raw_pair(key, provenance, lambda: self._image(file, parts),
                         lambda: self._captions(file, parts))

    def _image(self, file: BinaryIO, parts: dict[str, Part]) -> bytes:
        suffix = next((suffix for suffix in parts if suffix in IMAGE_SUFFIXES), "")
        return read_part(file, parts.get(suffix), MAX_BYTES)

    def _captions(self, file: BinaryIO, parts: dict[str, Part]) -> tuple[str, ...]:
        if "json" in parts and "txt" not in parts:
            return captions_in_json(read_part(file, parts["json"], MAX_CAPTION_BYTES), self.caption_name)
        return captions_in_text(read_part(file, parts.get("txt"), MAX_CAPTION_BYTES))
