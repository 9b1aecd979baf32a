"""Folders of images, each with a text file of the same name beside it, of any case; links to folders are not followed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import (
    IMAGE_SUFFIXES,
    OTHER_IMAGES,
    RawPair,
    Source,
    SourceError,
    caption_bytes,
    captions_in_text,
    key_of,
    read_raw_pair,
    suffix_of,
)
from thousandwords.ingest.sources.filesystem import check_not_pointer, open_folder

TEXT_SUFFIXES = ("txt", "caption")
Input = tuple[str, str, InvalidInput | None]  # names of the image and of its text, and a problem


class FolderSource(Source):
    """All images under a folder, each with a .txt of the same name beside it; hidden files are skipped."""

    settings = ("caption_lines", "link_roots")

    def __init__(self, root: str | Path, caption_lines: str = "separate", link_roots: Sequence[str] = ()):
        self.folder, self.caption_lines = open_folder(root, link_roots), caption_lines

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
        return captions_in_text(
            caption_bytes(lambda limit: self.folder.read(text, limit)), self.caption_lines
        )

    def _inputs(self, folder: str) -> Iterator[Input]:
        """All inputs, sorted per folder: images, and texts and files of other formats that lack their image."""
        try:
            entries = self.folder.entries(folder)
        except InvalidInput as problem:
            yield folder or ".", "", problem
            return
        texts = {
            _stem_of(entry.name): entry.name
            for entry in reversed(entries)
            if not entry.is_folder and suffix_of(entry.name) in TEXT_SUFFIXES
        }
        others = {
            _stem_of(entry.name): entry.name
            for entry in entries
            if not entry.is_folder and suffix_of(entry.name) not in TEXT_SUFFIXES
        }
        image_stems = {_stem_of(entry.name) for entry in entries if suffix_of(entry.name) in IMAGE_SUFFIXES}
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith(".") and entry.name != "..":  # which a zip may have: unsafe, so counted
                continue
            stem = _stem_of(entry.name)
            is_image = suffix_of(entry.name) in IMAGE_SUFFIXES
            if is_image or (suffix_of(entry.name) in OTHER_IMAGES and stem not in image_stems):
                yield name, os.path.join(folder, texts[stem]) if stem in texts else "", None
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


def _stem_of(name: str) -> str:
    """A file name without its suffix: "a/cat.png" -> "a/cat"."""
    return name.rpartition(".")[0]
