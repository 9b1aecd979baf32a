"""A folder of pictures, each with a text file of its name beside it; links to folders are not followed."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from thousandwords.images import Refused
from thousandwords.sources._contract import (
    IMAGE_SUFFIXES,
    RawPair,
    Source,
    caption_bytes,
    captions_in_text,
    key_of,
    raw_pair,
    read_ahead,
    suffix_of,
)
from thousandwords.sources._places import place_of
from thousandwords.tars import SourceError


class FolderSource(Source):
    """Pictures anywhere under a folder, each with a .txt of its name beside it; hidden files are skipped."""

    def __init__(self, root: str | Path):
        self.place = place_of(root)

    def check(self) -> int:
        place = self.place.address
        if self.place.kind() != "folder":
            raise SourceError(f"{self.place.setting}: there is no folder {place}. Make it, or name another")
        inputs = list(self._inputs(""))
        pictures = [name for name, problem in inputs if problem is None]
        if not pictures:
            raise SourceError(f"{place} holds no pictures ({', '.join(IMAGE_SUFFIXES)}). "
                              "Put some there, each with a text file of its name, like cat.png and cat.txt")
        if not any(self.place.kind(_caption_of(picture)) for picture in pictures):
            raise SourceError(f"None of the {len(pictures)} pictures in {place} has a caption. "
                              "Put a text file of its name beside each, like cat.txt beside cat.png")
        return len(inputs)

    def __iter__(self) -> Iterator[RawPair]:
        return read_ahead(self._read, self._inputs(""), self.place.at_once)

    def _read(self, found: tuple[str, Refused | None]) -> RawPair:
        name, problem = found
        key, provenance = key_of(name), key_of(f"{self.place.name}/{name}")
        if problem:
            return RawPair(key, None, (), provenance, problem)
        return raw_pair(key, provenance, lambda: self.place.picture(name),
                        lambda: captions_in_text(caption_bytes(lambda most: self.place.read(_caption_of(name), most))))

    def _inputs(self, folder: str) -> Iterator[tuple[str, Refused | None]]:
        """Names under the root, sorted folder by folder: the pictures, and what should have been one."""
        try:
            entries = self.place.entries(folder)
        except Refused as problem:
            yield folder or ".", problem
            return
        pictured = {_stem_of(entry.name) for entry in entries if suffix_of(entry.name) in IMAGE_SUFFIXES}
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if suffix_of(entry.name) in IMAGE_SUFFIXES:
                yield name, None
            elif entry.is_folder and not entry.is_link:
                yield from self._inputs(name)
            elif entry.is_folder:
                yield name, Refused("unsafe_path", "a link to a folder; such links are not followed")
            elif suffix_of(entry.name) == "txt" and _stem_of(entry.name) not in pictured:
                yield name, Refused("missing_pair", f"there is no picture beside {entry.name}")


def _caption_of(name: str) -> str:
    return f"{_stem_of(name)}.txt"


def _stem_of(name: str) -> str:
    """The name of a file with a suffix, without it: "a/cat.png" -> "a/cat"."""
    return name.rpartition(".")[0]
