"""Base of sources that are a list of image names and captions: tables, JSON lines, COCO, Parquet with paths.

Several rows of one image are several captions of one pair, in the order of the list.
"""

from __future__ import annotations

import os
import posixpath
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import (
    RawPair,
    Source,
    SourceError,
    clean_captions,
    key_of,
    read_ahead,
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


class ListSource(Source):
    """A list, with images in its own folder or in `image_folder` (may be relative to that)."""

    def __init__(self, path: str | Path, image_folder: str | None = None):
        self.folder, self.file_name = open_parent_folder(path)
        self.image_folder = open_image_folder(self.folder, image_folder)

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """All rows, in order; raises SourceError if the rest of the list is not reliable."""

    @property
    def address(self) -> str:
        return self.folder.address_of(self.file_name)

    def __iter__(self) -> Iterator[RawPair]:
        return read_ahead(self._read, self._rows_by_image(), self.image_folder.max_parallel_reads)

    def count(self, captions: str, fix: str) -> int:
        """The number of images and bad rows; raises SourceError if there is no valid row, or no caption."""
        names, has_valid_row, has_caption = set(), False, False
        for row in self.rows():
            names.add(row.image)
            has_valid_row |= row.problem is None
            has_caption |= any(text.strip() for text in row.captions)
        if not has_valid_row:
            raise SourceError(f"{self.address} has no row with an image and a caption. Add one per image")
        if not has_caption:
            raise SourceError(f"{self.address} has no captions: {captions} is empty. {fix}")
        return len(names)

    def _rows_by_image(self) -> Iterator[Row]:
        """One row per image, in the order of first appearance."""
        rows_of: dict[str, list[Row]] = {}
        for row in self.rows():
            rows_of.setdefault(row.image, []).append(row)
        for image, rows in rows_of.items():
            captions = tuple(text for row in rows for text in row.captions)
            recaptions = tuple(text for row in rows for text in row.recaptions)
            digests = tuple(dict.fromkeys(digest for row in rows for digest in row.digests))
            yield Row(
                image, captions, recaptions, digests, next((row.problem for row in rows if row.problem), None)
            )

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


def image_name(value: object, field: str) -> str:
    """The relative path in a field, "./a//b.png" -> "a/b.png"; raises InvalidInput if there is none."""
    text = value.strip() if isinstance(value, str) else ""
    if not text or "\0" in text or not _is_encodable(text):
        raise InvalidInput("missing_pair", f"{field} names no image")
    if "://" in text:
        raise InvalidInput(
            "unsafe_path", f"{field} has the URL {text}; URLs in a list are not fetched. Download it first"
        )
    return os.path.normpath(text)


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True


def open_image_folder(folder: Folder, image_folder: str | None) -> Folder:
    """Open the folder of the images of a list that is in `folder`."""
    if image_folder is None:
        return folder
    if "://" in image_folder or os.path.isabs(image_folder):
        return open_folder(image_folder)
    protocol, mark, path = folder.address_of(image_folder).rpartition("://")
    normalized = posixpath.normpath(path) if mark else path  # a URL cannot contain ..
    return open_folder(f"{protocol}{mark}{normalized}")
