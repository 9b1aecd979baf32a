"""The contract of sources, and what they share: raw pairs, captions, keys.

Nothing here decodes a picture. An input that can't be used becomes a RawPair with a `problem`, so that each is counted once;
what makes a whole source doubtful (a cut tar, an unclosed quote) raises SourceError, and never just ends the source early.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from thousandwords.images import Refused

T = TypeVar("T")
IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "jpe", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTION = 4_000            # characters
MAX_CAPTION_BYTES = 1_000_000  # of a caption file, and of a line in a table


@dataclass(frozen=True)
class RawPair:
    """One input as found; `problem` says why it can't become a pair."""

    key: str
    image: bytes | None
    captions: tuple[str, ...]
    provenance: str
    problem: Refused | None = None
    recaptions: tuple[str, ...] = ()    # what the second caption column says, as it stands there
    shard: str | None = None    # the file it lies in, where a source is files of many pairs each


class Source(ABC):
    """Raw pairs of one place; iterating twice gives the same pairs in the same order."""

    settings: ClassVar[tuple[str, ...]] = ()    # what it reads of the section `data`, besides where it lies

    @abstractmethod
    def check(self) -> int:
        """How many inputs there are; SourceError if no picture or no caption at all. Decodes nothing.

        Of tars behind a URL it is an estimate: they would have to be fetched to be counted.
        """

    @abstractmethod
    def __iter__(self) -> Iterator[RawPair]: ...


# ---- captions


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Trimmed, without blank ones and repeats, in order: [" a cat", "", "a cat"] -> ("a cat",)."""
    captions = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not captions:
        raise Refused("caption_empty", "there is nothing but blanks")
    for caption in captions:
        if len(caption) > MAX_CAPTION:
            raise Refused("caption_too_long", f"{len(caption):,} characters; the limit is {MAX_CAPTION:,}")
        if "\0" in caption or any("\ud800" <= character <= "\udfff" for character in caption):
            raise Refused("caption_encoding", f"no UTF-8 text: {ascii(caption[:60])}")
    return captions


def caption_bytes(read: Callable[[int], bytes]) -> bytes:
    """What `read` gives of a file of captions, when told how much it may be; Refused as a caption is where that is too much."""
    try:
        return read(MAX_CAPTION_BYTES)
    except Refused as problem:
        if problem.reason == "too_many_bytes":
            raise Refused("caption_too_long", problem.detail) from problem
        raise


def captions_in_text(data: bytes) -> tuple[str, ...]:
    """The captions of a .txt file: one a line."""
    try:
        return clean_captions(data.decode("utf-8-sig").replace("\r\n", "\n").split("\n"))
    except UnicodeDecodeError as error:
        raise Refused("caption_encoding", f"no UTF-8 text: {error}") from error


def json_object(data: bytes | str) -> dict:
    """The JSON object in some bytes; ValueError where there is none."""
    try:
        found = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is {type(found).__name__}, not an object")
    return found


def texts_in(value: object) -> tuple[str, ...] | None:
    """A text, a list of texts or nothing, as texts; None where it is anything else: "a" -> ("a",), None -> ()."""
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return tuple(texts)
    return None


# ---- names


def key_of(name: str) -> str:
    r"""A file name as a key that is UTF-8; no two names share one: b"caf\xe9" -> "caf\\xe9"."""
    return name.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def suffix_of(name: str) -> str:
    """What follows the last dot, in small letters: "own/Cat.PNG" -> "png". Not by pathlib, which takes ten times as long."""
    stem, _, suffix = os.path.basename(name.rstrip("/")).rpartition(".")
    return suffix.lower() if stem else ""


# ---- pairs


def raw_pair(key: str, provenance: str, read_image: Callable[[], bytes], read_captions: Callable[[], tuple[str, ...]],
             recaptions: tuple[str, ...] = (), digests: Iterable[object] = (), shard: str | None = None) -> RawPair:
    """Both halves read, the picture held against what its source says is its sha256; what refuses becomes the pair's problem."""
    image = None
    try:
        image = read_image()
        for digest in digests:
            check_digest(image, digest)
        return RawPair(key, image, read_captions(), provenance, recaptions=recaptions, shard=shard)
    except Refused as problem:
        return RawPair(key, image, (), provenance, problem, shard=shard)


def check_digest(image: bytes, wanted: object) -> None:
    """Refused where `wanted`, a field of a source, is another sha256 than the picture's; an empty field asks for nothing."""
    if wanted in (None, ""):
        return
    if not isinstance(wanted, str) or not re.fullmatch("[0-9a-fA-F]{64}", wanted.strip()):
        raise Refused("bad_row", f"no sha256 of 64 hexadecimal digits: {ascii(wanted)[:100]}")
    found = hashlib.sha256(image).hexdigest()
    if found != wanted.strip().lower():
        raise Refused("hash_mismatch", f"its sha256 should be {wanted.strip()}, found {found}")


def read_ahead(read: Callable[[T], RawPair], items: Iterable[T], count: int) -> Iterator[RawPair]:
    """`read` of each item, in their order; up to `count` of them at a time, for places that answer slowly."""
    if count == 1:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(count) as threads:
        waiting = deque()
        for item in items:
            waiting.append(threads.submit(read, item))
            if len(waiting) == count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
