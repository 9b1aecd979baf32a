"""Folders of images, each with a text of the same name beside it (cat.txt or cat.png.txt, of any case), else a .json;
or with the texts in a folder of their own: images/a/cat.png and captions/a/cat.txt.

Links to folders are not followed.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import (
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    OTHER_IMAGES,
    RawPair,
    Source,
    SourceError,
    caption_bytes,
    captions_in_json,
    captions_in_text,
    json_object,
    key_of,
    read_raw_pair,
    suffix_of,
)
from thousandwords.ingest.sources.filesystem import check_not_pointer, open_folder
from thousandwords.ingest.sources.local_folder import Entry

TEXT_SUFFIXES = ("txt", "caption")
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
TEXT_FOLDERS = ("captions", "caption", "texts", "text", "txt")
Input = tuple[str, str, InvalidInput | None]  # names of the image and of its text, and a problem


class FolderSource(Source):
    """All images under a folder, each with a .txt, or a .json, of the same name beside it; hidden files are skipped."""

    settings = ("caption_lines", "caption_column", "link_roots")

    def __init__(
        self,
        root: str | Path,
        caption_lines: str = "separate",
        link_roots: Sequence[str] = (),
        caption_column: str = "caption",
    ):
        self.folder, self.caption_lines = open_folder(root, link_roots), caption_lines
        self.caption_column = caption_column

    def check(self) -> int:
        address = self.folder.address
        if self.folder.kind() != "folder":
            raise SourceError(
                f"{self.folder.setting}: there is no folder {address}. Create it, or set another"
            )
        inputs = list(self._inputs(""))
        images = [(name, text) for name, text, problem in inputs if problem is None]
        if not any(suffix_of(name) in IMAGE_SUFFIXES for name, _ in images):
            unread = next(
                (problem.detail for *_, problem in inputs if problem and "format" in problem.detail), None
            )
            hint = f"; {unread}. Add" if unread else ". Add"
            if images:
                hint = (
                    f"; the format of {images[0][0]} is not read. Convert such files to JPEG or PNG, and add"
                )
            raise SourceError(
                f"{address} has no images ({', '.join(IMAGE_SUFFIXES)}){hint} a text file of the same name for each, "
                "like cat.txt beside cat.png"
            )
        check_not_pointer(self.folder, images[0][0])
        if not any(text for _, text in images):
            raise SourceError(
                f"None of the {len(images)} images in {address} has a caption. "
                "Put a text file of the same name beside each, like cat.txt beside cat.png"
            )
        return len(inputs)

    def __iter__(self) -> Iterator[RawPair]:
        return self.folder.read_each(self._read, self._inputs(""))

    def _read(self, item: Input) -> RawPair:
        name, text, problem = item
        key, provenance = key_of(name), key_of(f"{self.folder.name}/{name}")
        if problem:
            return RawPair(key, None, (), provenance, problem)
        return read_raw_pair(
            key, provenance, lambda: self.folder.read_image(name), lambda: self._captions(name, text)
        )

    def _captions(self, name: str, text: str) -> tuple[str, ...]:
        if not text:
            raise InvalidInput("missing_pair", f"there is no {_stem_of(os.path.basename(name))}.txt")
        data = caption_bytes(lambda limit: self.folder.read(text, limit))
        if suffix_of(text) == "json":
            return captions_in_json(data, self.caption_column)
        return captions_in_text(data, self.caption_lines)

    def first_records(self, count: int) -> list[dict]:
        """The .json of the first images that have no text."""
        texts = (text for _, text, _ in self._inputs("") if suffix_of(text) == "json")
        records = []
        for text in itertools.islice(texts, count):
            with contextlib.suppress(ValueError):  # InvalidInput is a ValueError
                records.append(json_object(self.folder.read(text, MAX_CAPTION_BYTES)))
        return records

    def _inputs(self, folder: str) -> Iterator[Input]:
        """All inputs, sorted per folder: images, and texts and files of other formats that lack their image."""
        try:
            entries = self.folder.entries(folder)
        except InvalidInput as problem:
            yield folder or ".", "", problem
            return
        texts = {
            _stem_of(name): os.path.join(place, name)
            for place, names in (
                *self._parallel(folder, IMAGE_FOLDERS, TEXT_FOLDERS),
                (folder, _files(entries)),
            )
            for suffix in ("json", *TEXT_SUFFIXES[::-1])  # the last one counts: cat.txt before cat.json
            for name in reversed(names)
            if suffix_of(name) == suffix
        }
        others = {
            _stem_of(entry.name): entry.name
            for entry in entries
            if not entry.is_folder and suffix_of(entry.name) not in TEXT_SUFFIXES
        }
        images = [entry.name for entry in entries if suffix_of(entry.name) in IMAGE_SUFFIXES]
        for _, names in self._parallel(folder, TEXT_FOLDERS, IMAGE_FOLDERS):
            images += [name for name in names if suffix_of(name) in (*IMAGE_SUFFIXES, *OTHER_IMAGES)]
        image_stems = {*map(_stem_of, images), *images}  # cat.txt or cat.png.txt
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith(".") and entry.name != "..":  # which a zip may have: unsafe, so counted
                continue
            stem = _stem_of(entry.name)
            is_image = suffix_of(entry.name) in IMAGE_SUFFIXES
            if is_image or (suffix_of(entry.name) in OTHER_IMAGES and stem not in image_stems):
                text = texts.get(stem) or texts.get(entry.name)
                yield name, text or "", None
            elif entry.is_folder and not entry.is_link:
                yield from self._inputs(name)
            elif entry.is_folder:
                detail = "a link to a folder; such links are not followed. Set data.path to the folder itself"
                yield name, "", InvalidInput("unsafe_path", detail)
            elif suffix_of(entry.name) in TEXT_SUFFIXES and stem not in image_stems:
                other = others.get(stem)
                if other and suffix_of(other) in OTHER_IMAGES:
                    continue  # an input itself
                hint = f"; the format of {other} is not read" if other else ""
                yield name, "", InvalidInput("missing_pair", f"there is no image beside {entry.name}{hint}")

    def _parallel(
        self, folder: str, names: Sequence[str], others: Sequence[str]
    ) -> list[tuple[str, list[str]]]:
        """(folder, its files) of each `parallel_folders` that is there."""
        found = []
        for other in parallel_folders(folder, names, others):
            with contextlib.suppress(InvalidInput):
                found.append((other, _files(self.folder.entries(other))))
        return found


def parallel_folders(folder: str, names: Sequence[str], others: Sequence[str]) -> Iterator[str]:
    """Where the other half of the pairs in a folder may be: "images/a" -> "captions/a", "caption/a", "texts/a" ..."""
    parts = folder.split("/")
    for number, part in enumerate(parts):
        if part.lower() in names:
            for other in others:
                other = other.capitalize() if part[0].isupper() else other
                yield "/".join([*parts[:number], other, *parts[number + 1 :]])


def _files(entries: Sequence[Entry]) -> list[str]:
    return [entry.name for entry in entries if not entry.is_folder]


def _stem_of(name: str) -> str:
    """A file name without its suffix: "a/cat.png" -> "a/cat"."""
    return name.rpartition(".")[0]
