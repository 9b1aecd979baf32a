"""WebDataset tars: the members of a sample share a name, like cat.png and cat.txt (or a caption in cat.json).

img2dataset writes such tars, with the status of each download in the .json, and beside each tar a `_stats.json` with
the number of its samples. A tar is used as a whole or not at all; a remote tar is copied to a temporary file.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from thousandwords.core.errors import InvalidInput
from thousandwords.data import image_decoding
from thousandwords.ingest.sources.base import (
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    OTHER_IMAGES,
    RawPair,
    Source,
    SourceError,
    as_texts,
    caption_bytes,
    captions_in_json,
    captions_in_text,
    json_object,
    key_of,
    read_raw_pair,
)
from thousandwords.ingest.sources.filesystem import check_not_pointer, find_files
from thousandwords.ingest.sources.tar_index import TarPart, index_tar, read_part

SUFFIXES = (*IMAGE_SUFFIXES, *OTHER_IMAGES, "txt", "json")
Parts = dict[str, TarPart]  # of a sample, by suffix


class WebDatasetSource(Source):
    """One tar, a folder of tars, or a glob; a caption is the .txt, or else `caption_column` in the .json."""

    settings = ("caption_column", "recaption_column", "sha256_column", "caption_lines")

    def __init__(
        self,
        path: str | Path,
        caption_column: str = "caption",
        recaption_column: str | None = None,
        sha256_column: str | None = None,
        caption_lines: str = "separate",
    ):
        self.caption_lines = caption_lines
        self.path, self.caption_column = str(path), caption_column
        self.recaption_column, self.sha256_column = recaption_column, sha256_column
        self.folder, self.tars = find_files(self.path, "*.tar")

    def check(self) -> int:
        if not self.tars:
            raise SourceError(
                f"{self.folder.setting}: there is no .tar file at {self.path}. "
                "Set data.path to a tar, or a folder of tars"
            )
        for tar in self.tars:
            check_not_pointer(self.folder, tar)
        is_local = not self.folder.parallel_reads
        wanted = {"recaption_column": "second caption", "sha256_column": "sha256 of the image's file"}
        wanted = {setting: meaning for setting, meaning in wanted.items() if getattr(self, setting)}
        count, suffixes, found = 0, set(), set()
        for tar in self.tars if is_local else self.tars[:1]:  # one index in memory at a time
            with self._open(tar) as (file, samples):
                count += len(samples)
                suffixes.update(*samples.values())
                for setting in wanted.keys() - found:
                    key = getattr(self, setting)
                    if any(key in _read_json(file, parts) for parts in samples.values()):
                        found.add(setting)
        where = f"The {len(self.tars)} tars at {self.path} have no"
        if suffixes.isdisjoint(IMAGE_SUFFIXES):
            raise SourceError(
                f"{where} images. Pack images and captions under the same name, like cat.png and cat.txt"
            )
        if suffixes.isdisjoint(("txt", "json")):
            raise SourceError(
                f"{where} captions. Pack a text or JSON with each image under the same name, like cat.txt"
            )
        for setting, meaning in wanted.items():
            if setting not in found:
                key = getattr(self, setting)
                raise SourceError(
                    f"{where} .json with {key!r}. Set data.{setting} to the key of the {meaning}"
                )
        if is_local:
            return count
        sizes = [self.folder.size(tar) for tar in self.tars]
        return round(count * sum(sizes) / max(1, sizes[0]))

    def __iter__(self) -> Iterator[RawPair]:
        for tar in self.tars:
            with self._open(tar) as (file, samples):
                for stem, parts in samples.items():
                    yield self._read(file, parts, tar, stem)

    @contextlib.contextmanager
    def _open(self, tar: str) -> Iterator[tuple[BinaryIO, dict[str, Parts]]]:
        """A tar and its samples; raises SourceError if it is truncated or does not match its _stats.json."""
        address = self.folder.address_of(tar)
        with self.folder.local_copy(tar) as path, open(path, "rb") as file:
            samples = index_tar(path, SUFFIXES, address)
            count = sum(not parts.keys().isdisjoint(IMAGE_SUFFIXES) for parts in samples.values())
            expected = self._expected_images(tar)
            if expected not in (None, count):
                raise SourceError(
                    f"{address} has {count} images, but img2dataset wrote {expected}, "
                    "according to its _stats.json. Fetch both again"
                )
            yield file, samples

    def first_records(self, count: int) -> list[dict]:
        """The .json of the first samples that have no .txt."""
        for tar in self.tars[:1]:
            with self._open(tar) as (file, samples):
                few = [parts for parts in samples.values() if "txt" not in parts][:count]
                return [_read_json(file, parts) for parts in few]
        return []

    def _expected_images(self, tar: str) -> int | None:
        """The number of images that img2dataset wrote to a tar, from its _stats.json; None if unknown."""
        name = f"{tar.removesuffix('.tar')}_stats.json"
        if self.folder.kind(name) != "file":
            return None
        try:
            successes = json_object(self.folder.read(name, MAX_CAPTION_BYTES)).get("successes")
        except ValueError as error:  # InvalidInput is a ValueError
            raise SourceError(
                f"{self.folder.address_of(name)} cannot be read ({error}). Fetch it again, or remove it"
            ) from error
        return successes if isinstance(successes, int) else None

    def _read(self, file: BinaryIO, parts: Parts, tar: str, stem: str) -> RawPair:
        record = _read_json(file, parts)
        recaptions = as_texts(record.get(self.recaption_column))
        return read_raw_pair(
            key_of(f"{tar.removesuffix('.tar')}/{stem}"),
            key_of(f"{tar}/{stem}"),
            lambda: _image(file, parts, record),
            lambda: self._captions(file, parts, recaptions),
            recaptions or (),
            [record.get(self.sha256_column)],
            key_of(tar),
        )

    def _captions(self, file: BinaryIO, parts: Parts, recaptions: tuple[str, ...] | None) -> tuple[str, ...]:
        if recaptions is None:
            raise InvalidInput(
                "bad_row", f"{self.recaption_column!r} in the .json is neither a text nor a list of texts"
            )
        suffix = "json" if "json" in parts and "txt" not in parts else "txt"
        data = caption_bytes(lambda limit: read_part(file, parts.get(suffix), limit))
        if suffix == "txt":
            return captions_in_text(data, self.caption_lines)
        return captions_in_json(data, self.caption_column)


def _read_json(file: BinaryIO, parts: Parts) -> dict:
    """The fields of the .json; {} if it cannot be read (`captions_in_json` rejects it where it is needed)."""
    try:
        return json_object(read_part(file, parts.get("json"), MAX_CAPTION_BYTES))
    except ValueError:  # InvalidInput is a ValueError
        return {}


def _image(file: BinaryIO, parts: Parts, record: dict) -> bytes:
    status = record.get("status")
    if isinstance(status, str) and status.startswith("failed_to_"):  # img2dataset: _download, _resize
        raise InvalidInput("missing_pair", f"{status}: {record.get('error_message')}")
    suffixes = [suffix for images in (IMAGE_SUFFIXES, OTHER_IMAGES) for suffix in parts if suffix in images]
    return read_part(file, parts[suffixes[0]] if suffixes else None, image_decoding.MAX_BYTES)
