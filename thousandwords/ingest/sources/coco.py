"""COCO captions: one JSON of `images` (id, file_name) and `annotations` (image_id, caption), several captions to a picture.

Pictures lie beside the JSON, or in `data.image_folder` (as COCO comes: ../val2017). The format allows no reading in parts, so
the size of the file is limited, before it is read.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from thousandwords.images import Refused
from thousandwords.sources._contract import json_object
from thousandwords.sources._listed import ListSource, Row, picture_name
from thousandwords.tars import SourceError

MAX_JSON = 500_000_000    # bytes; the captions of COCO's 118,287 training pictures take 92 million


class CocoSource(ListSource):
    """Pictures in the order of `images`, each with its captions in the order of `annotations`."""

    settings = ("image_folder",)

    def __init__(self, path: str | Path, image_folder: str | None = None):
        super().__init__(path, image_folder)

    def check(self) -> int:
        if self.place.kind(self.file) != "file":
            raise SourceError(f"{self.place.setting}: there is no file {self.address}. Set it to your captions .json")
        return self.count("what its annotations say", "Is it a file of captions, not of boxes or persons?")

    def rows(self) -> Iterator[Row]:
        content = self._content()
        captions, faults = _captions(content["annotations"])
        ids, names = set(), set()
        for number, image in enumerate(content["images"]):
            try:
                identity, name = _image(image, number, ids)
                if name in names:
                    raise Refused("duplicate_id", f"images[{number}] is {name}, which came before under another id")
                names.add(name)
                yield _row(name, captions.get(identity, []))
            except Refused as problem:
                yield Row(f"images[{number}]", problem=problem)
        yield from faults
        yield from _strays(captions, ids)

    def _content(self) -> dict:
        if (size := self.place.size(self.file)) > MAX_JSON:
            raise SourceError(f"{self.address} has {size:,} bytes; the limit is {MAX_JSON:,}. Make JSON lines of it, which are "
                              "read one by one (data.source: jsonl)")
        with self.place.on_disk(self.file) as path:
            try:
                content = json_object(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
            except ValueError as error:
                raise SourceError(f"{self.address} is no COCO JSON, or was cut short ({error}). Fetch it again") from error
        for name in ("images", "annotations"):
            if not isinstance(content.get(name), list):
                raise SourceError(f"{self.address} has no list {name!r}, as COCO captions do. Set data.path to the captions")
        return content


def _image(image: object, number: int, ids: set[int | str]) -> tuple[int | str, str]:
    """(id, file name) of an entry; its id joins `ids`, whatever its name is worth."""
    identity = image.get("id") if isinstance(image, dict) else None
    if not _is_id(identity):
        raise Refused("bad_row", f"images[{number}] is no object with an id and a file_name")
    if identity in ids:
        raise Refused("duplicate_id", f"images[{number}] has the id {identity!r}, which came before")
    ids.add(identity)
    return identity, picture_name(image.get("file_name"), f"file_name of images[{number}]")


def _row(name: str, captions: list[str]) -> Row:
    if not captions:
        return Row(name, problem=Refused("missing_pair", "no annotation has a caption of this picture"))
    return Row(name, tuple(captions))


def _captions(annotations: list) -> tuple[dict[int | str, list[str]], list[Row]]:
    """({image id: its captions}, what can't be used)"""
    captions, faults = {}, []
    for number, annotation in enumerate(annotations):
        found = annotation if isinstance(annotation, dict) else {}
        if _is_id(found.get("image_id")) and isinstance(found.get("caption"), str):
            captions.setdefault(found["image_id"], []).append(found["caption"])
        else:
            detail = f"annotations[{number}] is no object with an image_id and a caption"
            faults.append(Row(f"annotations[{number}]", problem=Refused("bad_row", detail)))
    return captions, faults


def _strays(captions: dict[int | str, list[str]], ids: set[int | str]) -> Iterator[Row]:
    """What is said of pictures that are not in the list."""
    for identity, texts in captions.items():
        if identity not in ids:
            detail = f"{len(texts)} captions of image_id {identity!r}, which is not among the images"
            yield Row(f"image_id {identity!r}", problem=Refused("missing_pair", detail))


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
