"""What tables, JSON lines, COCO files and Parquet columns of paths share: a list that names pictures and gives captions.

Several rows of one picture are several captions of one pair, in the order of the list.
"""
from __future__ import annotations

import os
import posixpath
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thousandwords.images import Refused
from thousandwords.sources._contract import RawPair, Source, clean_captions, key_of, raw_pair, read_ahead
from thousandwords.sources._places import Place, file_of, place_of
from thousandwords.tars import SourceError


@dataclass(frozen=True)
class Row:
    """What a row says of a picture; a row that can't be used has its place in the list for a picture, and the problem."""

    picture: str
    captions: tuple[str, ...] = ()
    recaptions: tuple[str, ...] = ()
    digests: tuple[object, ...] = ()    # what it says is the sha256 of the picture's file
    problem: Refused | None = None


class ListSource(Source):
    """A list, and pictures in the folder that it lies in, or in `image_folder` (which may be relative to that)."""

    def __init__(self, path: str | Path, image_folder: str | None = None):
        self.place, self.file = file_of(path)
        self.pictures = pictures_of(self.place, image_folder)

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row, in order; SourceError where what follows could not be trusted."""

    @property
    def address(self) -> str:
        return self.place.shown(self.file)

    def __iter__(self) -> Iterator[RawPair]:
        return read_ahead(self._read, self._gathered(), self.pictures.at_once)

    def count(self, list_is: str, add: str) -> int:
        """How many pictures and bad rows there are; SourceError if there is no sound row, or no caption."""
        names, is_sound, is_captioned = set(), False, False
        for row in self.rows():
            names.add(row.picture)
            is_sound |= row.problem is None
            is_captioned |= any(text.strip() for text in row.captions)
        if not is_sound:
            raise SourceError(f"{self.address} has no row with a picture and a caption. Add one per picture")
        if not is_captioned:
            raise SourceError(f"{self.address} has no captions: {list_is} is empty. {add}")
        return len(names)

    def _gathered(self) -> Iterator[Row]:
        """One row per picture, in the order in which they were first named."""
        gathered: dict[str, list[Row]] = {}
        for row in self.rows():
            gathered.setdefault(row.picture, []).append(row)
        for picture, rows in gathered.items():
            captions = tuple(text for row in rows for text in row.captions)
            recaptions = tuple(text for row in rows for text in row.recaptions)
            digests = tuple(dict.fromkeys(digest for row in rows for digest in row.digests))
            yield Row(picture, captions, recaptions, digests, next((row.problem for row in rows if row.problem), None))

    def _read(self, row: Row) -> RawPair:
        key, provenance = key_of(row.picture), key_of(f"{self.file}/{row.picture}")
        if row.problem:
            return RawPair(key, None, (), provenance, row.problem)
        return raw_pair(key, provenance, lambda: self.pictures.picture(row.picture),
                        lambda: clean_captions(row.captions), row.recaptions, row.digests)


def picture_name(value: object, where: str) -> str:
    """The relative path in a field of a list, "./a//b.png" -> "a/b.png"; Refused where there is none."""
    text = value.strip() if isinstance(value, str) else ""
    if not text or "\0" in text or not _is_encodable(text):
        raise Refused("missing_pair", f"{where} names no picture")
    if "://" in text:
        raise Refused("unsafe_path", f"{where} holds the URL {text}; nothing is fetched that a list names. Download it first")
    return os.path.normpath(text)


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:    # half of a surrogate pair, which JSON can spell
        return False
    return True


def pictures_of(place: Place, image_folder: str | None) -> Place:
    """Where the pictures of a list lie."""
    if image_folder is None:
        return place
    if "://" in image_folder or os.path.isabs(image_folder):
        return place_of(image_folder)
    protocol, mark, path = place.shown(image_folder).rpartition("://")
    return place_of(f"{protocol}{mark}{posixpath.normpath(path) if mark else path}")    # no URL knows what .. means
