"""Folders of images, each with a text file of the same name beside it; links to folders are not followed."""

import os
from collections.abc import Iterator
from pathlib import Path

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import (
    IMAGE_SUFFIXES,
    RawPair,
    Source,
    SourceError,
    caption_bytes,
    captions_in_text,
    key_of,
    read_raw_pair,
    suffix_of,
)
from thousandwords.ingest.sources.filesystem import open_folder


class FolderSource(Source):
    """All images under a folder, each with a .txt of the same name beside it; hidden files are skipped."""

    def __init__(self, root: str | Path):
        self.folder = open_folder(root)

    def check(self) -> int:
        address = self.folder.address
        if self.folder.kind() != "folder":
            raise SourceError(
                f"{self.folder.setting}: there is no folder {address}. Create it, or set another"
            )
        inputs = list(self._inputs(""))
        images = [name for name, problem in inputs if problem is None]
        if not images:
            other = next((f"; {problem.detail}" for _, problem in inputs if "format" in problem.detail), "")
            raise SourceError(
                f"{address} has no images ({', '.join(IMAGE_SUFFIXES)}){other}. "
                "Add some, each with a text file of the same name, like cat.png and cat.txt"
            )
        if not any(self.folder.kind(_caption_file(image)) for image in images):
            raise SourceError(
                f"None of the {len(images)} images in {address} has a caption. "
                "Put a text file of the same name beside each, like cat.txt beside cat.png"
            )
        return len(inputs)

    def __iter__(self) -> Iterator[RawPair]:
        return self.folder.read_each(self._read, self._inputs(""))

    def _read(self, name_and_problem: tuple[str, InvalidInput | None]) -> RawPair:
        name, problem = name_and_problem
        key, provenance = key_of(name), key_of(f"{self.folder.name}/{name}")
        if problem:
            return RawPair(key, None, (), provenance, problem)
        return read_raw_pair(
            key,
            provenance,
            lambda: self.folder.read_image(name),
            lambda: captions_in_text(
                caption_bytes(lambda limit: self.folder.read(_caption_file(name), limit))
            ),
        )

    def _inputs(self, folder: str) -> Iterator[tuple[str, InvalidInput | None]]:
        """(name, problem) of all inputs, sorted per folder: images, and files that lack their image."""
        try:
            entries = self.folder.entries(folder)
        except InvalidInput as problem:
            yield folder or ".", problem
            return
        others = {
            _stem_of(entry.name): entry.name
            for entry in entries
            if not entry.is_folder and suffix_of(entry.name) != "txt"
        }
        image_stems = {_stem_of(entry.name) for entry in entries if suffix_of(entry.name) in IMAGE_SUFFIXES}
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if suffix_of(entry.name) in IMAGE_SUFFIXES:
                yield name, None
            elif entry.is_folder and not entry.is_link:
                yield from self._inputs(name)
            elif entry.is_folder:
                yield name, InvalidInput("unsafe_path", "a link to a folder; such links are not followed")
            elif suffix_of(entry.name) == "txt" and _stem_of(entry.name) not in image_stems:
                other = others.get(_stem_of(entry.name))
                hint = f"; the format of {other} is not read" if other else ""
                yield name, InvalidInput("missing_pair", f"there is no image beside {entry.name}{hint}")


def _caption_file(name: str) -> str:
    return f"{_stem_of(name)}.txt"


def _stem_of(name: str) -> str:
    """A file name without its suffix: "a/cat.png" -> "a/cat"."""
    return name.rpartition(".")[0]
