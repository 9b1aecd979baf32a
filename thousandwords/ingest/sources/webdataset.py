"""WebDataset tars: the members of a sample share a name, like cat.png and cat.txt (or a caption in cat.json).

img2dataset writes such tars, with the status of each download in the .json, and beside each tar a
`_stats.json` with the number of its samples. A tar is used as a whole or not at all; a remote tar is copied
to a temporary file.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from thousandwords.core.errors import InvalidInput
from thousandwords.data import image_decoding
from thousandwords.ingest.sources.base import (
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    RawPair,
    Source,
    SourceError,
    as_texts,
    caption_bytes,
    captions_in_text,
    clean_captions,
    json_object,
    key_of,
    read_raw_pair,
)
from thousandwords.ingest.sources.filesystem import Folder, open_folder, open_parent_folder
from thousandwords.ingest.sources.tar_index import TarPart, index_tar, read_part

OTHER_IMAGES = (
    "heic",
    "heif",
    "avif",
    "jxl",
    "jp2",
    "psd",
    "dng",
    "cr2",
    "cr3",
    "nef",
    "arw",
)  # rejected by name
SUFFIXES = (*IMAGE_SUFFIXES, *OTHER_IMAGES, "txt", "json")
Samples = dict[str, dict[str, TarPart]]


class WebDatasetSource(Source):
    """One tar, a folder of tars, or a glob in the last part of the path.

    The caption of a sample is its .txt, or else the value of `caption_column` in its .json.
    """

    settings = ("caption_column", "recaption_column", "sha256_column")

    def __init__(
        self,
        path: str | Path,
        caption_column: str = "caption",
        recaption_column: str | None = None,
        sha256_column: str | None = None,
    ):
        self.path, self.caption_column = str(path), caption_column
        self.recaption_column, self.sha256_column = recaption_column, sha256_column
        self.tars = _find_tars(self.path)

    def check(self) -> int:
        if not self.tars:
            raise SourceError(
                f"{open_folder(self.path).setting}: there is no .tar file at {self.path}. "
                "Set data.path to a tar, a folder of tars or a glob"
            )
        is_local = self.tars[0].folder.max_parallel_reads == 1
        checked = self.tars if is_local else self.tars[:1]
        count, suffixes = 0, set()
        for tar in checked:  # one index in memory at a time
            samples = _read_samples(tar)
            count += len(samples)
            suffixes.update(*samples.values())
        if suffixes.isdisjoint(IMAGE_SUFFIXES):
            raise SourceError(
                f"The {len(self.tars)} tars at {self.path} have no images. "
                "Pack images and captions under the same name, like cat.png and cat.txt"
            )
        if suffixes.isdisjoint(("txt", "json")):
            raise SourceError(
                f"The {len(self.tars)} tars at {self.path} have no captions. "
                "Pack a text or JSON with each image under the same name, like cat.txt"
            )
        for setting, meaning in (
            ("recaption_column", "second caption"),
            ("sha256_column", "sha256 of the image's file"),
        ):
            key = getattr(self, setting)
            if key and not any(_has_key(tar, key) for tar in checked):
                raise SourceError(
                    f"The {len(self.tars)} tars at {self.path} have no .json with {key!r}. "
                    f"Set data.{setting} to the key of the {meaning}"
                )
        return count if is_local else self._estimate(count)

    def _estimate(self, samples_in_first: int) -> int:
        sizes = [tar.folder.size(tar.name) for tar in self.tars]
        return round(samples_in_first * sum(sizes) / max(1, sizes[0]))

    def __iter__(self) -> Iterator[RawPair]:
        for tar in self.tars:
            with tar.folder.local_copy(tar.name) as path, open(path, "rb") as file:
                for stem, parts in _index_samples(tar, path).items():
                    yield self._read(file, parts, tar.relative_path, stem)

    def _read(self, file: BinaryIO, parts: dict[str, TarPart], shard: str, stem: str) -> RawPair:
        key, provenance = key_of(f"{shard.removesuffix('.tar')}/{stem}"), key_of(f"{shard}/{stem}")
        record = _read_json(file, parts)
        recaptions = as_texts(record.get(self.recaption_column))
        return read_raw_pair(
            key,
            provenance,
            lambda: _image(file, parts, record),
            lambda: self._captions(file, parts, recaptions),
            recaptions or (),
            [record.get(self.sha256_column)],
            key_of(shard),
        )

    def _captions(
        self, file: BinaryIO, parts: dict[str, TarPart], recaptions: tuple[str, ...] | None
    ) -> tuple[str, ...]:
        if recaptions is None:
            raise InvalidInput(
                "bad_row", f"{self.recaption_column!r} in the .json is neither a text nor a list of texts"
            )
        if "json" in parts and "txt" not in parts:
            return captions_in_json(
                caption_bytes(lambda limit: read_part(file, parts["json"], limit)), self.caption_column
            )
        return captions_in_text(caption_bytes(lambda limit: read_part(file, parts.get("txt"), limit)))


def _has_key(tar: _Tar, key: str) -> bool:
    """Whether the .json of any sample has this key."""
    with tar.folder.local_copy(tar.name) as path, open(path, "rb") as file:
        return any(key in _read_json(file, parts) for parts in _index_samples(tar, path).values())


def captions_in_json(data: bytes, name: str) -> tuple[str, ...]:
    """The captions in a JSON object under `name`: a text or a list of texts."""
    try:
        value = json.loads(data)[name]
    except (KeyError, TypeError) as error:
        raise InvalidInput("missing_pair", f"there is no .txt, and no {name!r} in the .json") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput("caption_encoding", f"the .json cannot be read: {error}") from error
    texts = None if value is None else as_texts(value)
    if texts is None:
        raise InvalidInput("caption_encoding", f"{name!r} in the .json is neither a text nor a list of texts")
    return clean_captions(texts)


def _read_json(file: BinaryIO, parts: dict[str, TarPart]) -> dict:
    """The fields of the .json; {} if it cannot be read (`captions_in_json` rejects it where it is needed)."""
    try:
        return json_object(read_part(file, parts.get("json"), MAX_CAPTION_BYTES))
    except ValueError:  # InvalidInput is a ValueError
        return {}


def _image(file: BinaryIO, parts: dict[str, TarPart], record: dict) -> bytes:
    status = record.get("status")
    if isinstance(status, str) and status.startswith("failed_to_"):  # img2dataset: _download, _resize
        raise InvalidInput("missing_pair", f"{status}: {record.get('error_message')}")
    suffixes = [suffix for images in (IMAGE_SUFFIXES, OTHER_IMAGES) for suffix in parts if suffix in images]
    return read_part(file, parts[suffixes[0]] if suffixes else None, image_decoding.MAX_BYTES)


def _read_samples(tar: _Tar) -> Samples:
    with tar.folder.local_copy(tar.name) as path:
        return _index_samples(tar, path)


def _index_samples(tar: _Tar, path: Path) -> Samples:
    """The samples of a tar; raises SourceError if it is truncated or does not match its _stats.json."""
    samples = index_tar(path, SUFFIXES, tar.folder.address_of(tar.name))
    count = sum(not parts.keys().isdisjoint(IMAGE_SUFFIXES) for parts in samples.values())
    expected = _expected_images(tar)
    if expected not in (None, count):
        raise SourceError(
            f"{tar.folder.address_of(tar.name)} has {count} images, but img2dataset wrote {expected}, "
            "according to its _stats.json. Fetch both again"
        )
    return samples


def _expected_images(tar: _Tar) -> int | None:
    """The number of images that img2dataset wrote to a tar, from its _stats.json; None if unknown."""
    name = f"{tar.name.removesuffix('.tar')}_stats.json"
    if tar.folder.kind(name) != "file":
        return None
    try:
        successes = json_object(tar.folder.read(name, MAX_CAPTION_BYTES)).get("successes")
    except ValueError as error:  # InvalidInput is a ValueError
        raise SourceError(
            f"{tar.folder.address_of(name)} cannot be read ({error}). Fetch it again, or remove it"
        ) from error
    return successes if isinstance(successes, int) else None


# ---- finding tars


@dataclass(frozen=True)
class _Tar:
    folder: Folder
    name: str
    relative_path: str  # below the common folder of all tars


def _find_tars(path: str) -> list[_Tar]:
    """The tars at a path, in the order of their names."""
    local_path = path.removeprefix("file://")
    return _find_remote(path) if "://" in local_path else _find_local(local_path)


def _find_local(path: str) -> list[_Tar]:
    pattern = os.path.join(glob.escape(path), "*.tar") if os.path.isdir(path) else path
    paths = [path] if os.path.isfile(path) else sorted(glob.glob(pattern))
    tars = [Path(tar) for tar in paths if os.path.isfile(tar)]
    common = os.path.commonpath([tar.parent for tar in tars]) if tars else ""
    return [_Tar(open_folder(tar.parent), tar.name, os.path.relpath(tar, common)) for tar in tars]


def _find_remote(url: str) -> list[_Tar]:
    folder, pattern = open_parent_folder(url.rstrip("/"))
    kind = folder.kind(pattern)
    if kind == "file":
        return [_Tar(folder, pattern, pattern)]
    if kind == "folder":
        folder, pattern = open_folder(url), "*.tar"
    elif folder.kind() != "folder":
        return []
    names = [
        entry.name for entry in folder.entries() if not entry.is_folder and not entry.name.startswith(".")
    ]
    return [_Tar(folder, name, name) for name in names if fnmatch.fnmatchcase(name, pattern)]
