"""COCO captions: a JSON with `images` (id, file_name) and `annotations` (image_id, caption).

Images are beside the JSON, or in `data.image_folder` (in COCO's own layout: ../val2017). The JSON cannot be
read in parts, so its size is limited.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from thousandwords.core.errors import InvalidInput
from thousandwords.ingest.sources.base import SourceError, json_object
from thousandwords.ingest.sources.table import Row, TableSource, image_name


class CocoSource(TableSource):
    """Images in the order of `images`, each with its captions in the order of `annotations`."""

    settings = ("image_folder", "link_roots")
    file_type = "file", "your captions .json"
    captions_word = "the caption of each annotation"
    fix = "Use the file of captions, not of boxes or persons"

    def __init__(self, path: str | Path, image_folder: str | None = None, link_roots: Sequence[str] = ()):
        super().__init__(path, image_folder, link_roots)

    def rows(self) -> Iterator[Row]:
        content = self._content()
        captions, bad_rows = _captions(content["annotations"])
        ids, names = set(), set()
        for number, image in enumerate(content["images"]):
            try:
                identity, name = _image(image, number, ids)
                if name in names:
                    raise InvalidInput(
                        "duplicate_id", f"images[{number}] repeats the file {name} under another id"
                    )
                names.add(name)
                self.listed.add(name)
                problem = InvalidInput("missing_pair", "no annotation has a caption for this image")
                texts = tuple(captions.get(identity, ()))
                yield Row(name, texts, problem=None if texts else problem)
            except InvalidInput as problem:
                yield Row(f"images[{number}]", problem=problem)
        yield from bad_rows
        for identity in (identity for identity in captions if identity not in ids):
            count = len(captions[identity])
            detail = f"{count} captions of image_id {identity!r}, which is not among the images"
            yield Row(f"image_id {identity!r}", problem=InvalidInput("missing_pair", detail))

    def _content(self) -> dict:
        try:
            content = json_object(self.whole_json())
        except ValueError as error:
            raise SourceError(
                f"{self.address} is not a COCO JSON, or is truncated ({error}). Fetch it again"
            ) from error
        for name in ("images", "annotations"):
            if not isinstance(content.get(name), list):
                raise SourceError(
                    f"{self.address} has no list {name!r}, unlike COCO captions. Set data.path to the captions"
                )
        return content


def _image(image: object, number: int, ids: set[int | str]) -> tuple[int | str, str]:
    """(id, file name) of an entry; adds its id to `ids`, even if the name is not valid."""
    identity = image.get("id") if isinstance(image, dict) else None
    if not _is_id(identity):
        raise InvalidInput("bad_row", f"images[{number}] is not an object with an id and a file_name")
    if identity in ids:
        raise InvalidInput("duplicate_id", f"images[{number}] repeats the id {identity!r}")
    ids.add(identity)
    return identity, image_name(image.get("file_name"), f"file_name of images[{number}]")


def _captions(annotations: list) -> tuple[dict[int | str, list[str]], list[Row]]:
    """({image id: its captions}, rows for annotations that cannot be used)."""
    captions, bad_rows = {}, []
    for number, annotation in enumerate(annotations):
        fields = annotation if isinstance(annotation, dict) else {}
        if _is_id(fields.get("image_id")) and isinstance(fields.get("caption"), str):
            captions.setdefault(fields["image_id"], []).append(fields["caption"])
        else:
            detail = f"annotations[{number}] is not an object with an image_id and a caption"
            bad_rows.append(Row(f"annotations[{number}]", problem=InvalidInput("bad_row", detail)))
    return captions, bad_rows


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
