"""WebDataset tars, whose members share a name up to the first dot: cat.png and cat.txt (else a caption in cat.json).

img2dataset writes such tars, with what became of each download in the .json, and beside each tar a `_stats.json` that says how
many samples it should hold. A tar is read whole or not at all; of one behind a URL a copy is taken for the time being.
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

from thousandwords.images import Refused
from thousandwords.sources import _places
from thousandwords.sources._contract import (
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    RawPair,
    Source,
    caption_bytes,
    captions_in_text,
    clean_captions,
    json_object,
    key_of,
    raw_pair,
    texts_in,
)
from thousandwords.sources._places import Place, file_of, place_of
from thousandwords.tars import Part, SourceError, read_part, samples_of

SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json")
Samples = dict[str, dict[str, Part]]


class WebDatasetSource(Source):
    """One tar, a folder of them, or a glob in the last part of the path; captions in the JSON stand under `caption_column`.

    Where a sample has a .txt and a .json, the .txt is its caption.
    """

    settings = ("caption_column", "recaption_column", "sha256_column")

    def __init__(self, path: str | Path, caption_column: str = "caption", recaption_column: str | None = None,
                 sha256_column: str | None = None):
        self.path, self.caption_column, self.recaption_column = str(path), caption_column, recaption_column
        self.sha256_column = sha256_column
        self.tars = _find(self.path)

    def check(self) -> int:
        if not self.tars:
            raise SourceError(f"{place_of(self.path).setting}: there is no .tar file at {self.path}. "
                              "Set data.path to a tar, a folder of tars or a glob")
        looked_at = self.tars if self.tars[0].place.at_once == 1 else self.tars[:1]
        count, suffixes = 0, set()
        for tar in looked_at:    # the index of one tar in memory, not of all
            samples = _samples(tar)
            count += len(samples)
            suffixes.update(*samples.values())
        if suffixes.isdisjoint(IMAGE_SUFFIXES):
            raise SourceError(f"The {len(self.tars)} tars at {self.path} hold no pictures. "
                              "Pack pictures and captions under one name, like cat.png and cat.txt")
        if suffixes.isdisjoint(("txt", "json")):
            raise SourceError(f"The {len(self.tars)} tars at {self.path} hold no captions. "
                              "Pack a text or JSON of the same name with each picture, like cat.txt")
        for setting, meaning in (("recaption_column", "second text"), ("sha256_column", "sha256 of the picture's file")):
            key = getattr(self, setting)
            if key and not any(_has_key(tar, key) for tar in looked_at):
                raise SourceError(f"The {len(self.tars)} tars at {self.path} hold no .json with {key!r}. "
                                  f"Set data.{setting} to the key of the {meaning}")
        return count if looked_at is self.tars else self._estimate(count)

    def _estimate(self, samples_in_first: int) -> int:
        sizes = [tar.place.size(tar.name) for tar in self.tars]
        return round(samples_in_first * sum(sizes) / max(1, sizes[0]))

    def __iter__(self) -> Iterator[RawPair]:
        for tar in self.tars:
            with tar.place.on_disk(tar.name) as path, open(path, "rb") as file:
                for stem, parts in _whole(tar, path).items():
                    yield self._read(file, parts, tar.shown, stem)

    def _read(self, file: BinaryIO, parts: dict[str, Part], shard: str, stem: str) -> RawPair:
        key, provenance = key_of(f"{shard.removesuffix('.tar')}/{stem}"), key_of(f"{shard}/{stem}")
        record = _record(file, parts)
        recaptions = texts_in(record.get(self.recaption_column))
        return raw_pair(key, provenance, lambda: _image(file, parts, record), lambda: self._captions(file, parts, recaptions),
                        recaptions or (), [record.get(self.sha256_column)], key_of(shard))

    def _captions(self, file: BinaryIO, parts: dict[str, Part], recaptions: tuple[str, ...] | None) -> tuple[str, ...]:
        if recaptions is None:
            raise Refused("bad_row", f"{self.recaption_column!r} in the .json is neither a text nor a list of texts")
        if "json" in parts and "txt" not in parts:
            return captions_in_json(caption_bytes(lambda most: read_part(file, parts["json"], most)), self.caption_column)
        return captions_in_text(caption_bytes(lambda most: read_part(file, parts.get("txt"), most)))


def _has_key(tar: _Tar, key: str) -> bool:
    """Whether the .json of any sample has the key."""
    with tar.place.on_disk(tar.name) as path, open(path, "rb") as file:
        return any(key in _record(file, parts) for parts in _whole(tar, path).values())


def captions_in_json(data: bytes, name: str) -> tuple[str, ...]:
    """The captions under `name` in a JSON object: a text or a list of texts."""
    try:
        found = json.loads(data)[name]
    except (KeyError, TypeError) as error:
        raise Refused("missing_pair", f"there is no .txt, and no {name!r} in the .json") from error
    except (ValueError, RecursionError) as error:
        raise Refused("caption_encoding", f"the .json can't be read: {error}") from error
    texts = None if found is None else texts_in(found)
    if texts is None:
        raise Refused("caption_encoding", f"{name!r} in the .json is neither a text nor a list of texts")
    return clean_captions(texts)


def _record(file: BinaryIO, parts: dict[str, Part]) -> dict:
    """What the .json says; one that can't be read matters only where it holds the caption, and is refused there."""
    try:
        return json_object(read_part(file, parts.get("json"), MAX_CAPTION_BYTES))
    except ValueError:    # Refused is one
        return {}


def _image(file: BinaryIO, parts: dict[str, Part], record: dict) -> bytes:
    status = record.get("status")
    if isinstance(status, str) and status.startswith("failed_to_"):    # img2dataset: _download, _resize
        raise Refused("missing_pair", f"{status}: {record.get('error_message')}")
    suffix = next((suffix for suffix in parts if suffix in IMAGE_SUFFIXES), "")
    return read_part(file, parts.get(suffix), _places.MAX_BYTES)


def _samples(tar: _Tar) -> Samples:
    with tar.place.on_disk(tar.name) as path:
        return _whole(tar, path)


def _whole(tar: _Tar, path: Path) -> Samples:
    """The samples of a tar; SourceError if it was cut, or does not hold as many as img2dataset says beside it."""
    samples = samples_of(path, SUFFIXES, tar.place.shown(tar.name))
    found, wanted = sum(not parts.keys().isdisjoint(IMAGE_SUFFIXES) for parts in samples.values()), _successes(tar)
    if wanted not in (None, found):
        raise SourceError(f"{tar.place.shown(tar.name)} holds {found} pictures, but img2dataset wrote {wanted}, as its "
                          "_stats.json says. Fetch both again")
    return samples


def _successes(tar: _Tar) -> int | None:
    """How many pictures img2dataset says it wrote to a tar; None where it says nothing."""
    name = f"{tar.name.removesuffix('.tar')}_stats.json"
    if tar.place.kind(name) != "file":
        return None
    try:
        wanted = json_object(tar.place.read(name, MAX_CAPTION_BYTES)).get("successes")
    except ValueError as error:    # Refused is one
        raise SourceError(f"{tar.place.shown(name)} can't be read ({error}). Fetch it again, or remove it") from error
    return wanted if isinstance(wanted, int) else None


# ---- which tars


@dataclass(frozen=True)
class _Tar:
    place: Place
    name: str
    shown: str    # its path below the folder that holds all tars


def _find(path: str) -> list[_Tar]:
    """The tars at a path, in the order of their names."""
    return _find_remote(path) if "://" in path.removeprefix("file://") else _find_on_disk(path.removeprefix("file://"))


def _find_on_disk(path: str) -> list[_Tar]:
    pattern = os.path.join(glob.escape(path), "*.tar") if os.path.isdir(path) else path
    found = [path] if os.path.isfile(path) else sorted(glob.glob(pattern))
    tars = [Path(tar) for tar in found if os.path.isfile(tar)]
    above = os.path.commonpath([tar.parent for tar in tars]) if tars else ""
    return [_Tar(place_of(tar.parent), tar.name, os.path.relpath(tar, above)) for tar in tars]


def _find_remote(url: str) -> list[_Tar]:
    place, pattern = file_of(url.rstrip("/"))
    kind = place.kind(pattern)
    if kind == "file":
        return [_Tar(place, pattern, pattern)]
    if kind == "folder":
        place, pattern = place_of(url), "*.tar"
    elif place.kind() != "folder":
        return []
    names = [entry.name for entry in place.entries() if not entry.is_folder and not entry.name.startswith(".")]
    return [_Tar(place, name, name) for name in names if fnmatch.fnmatchcase(name, pattern)]
