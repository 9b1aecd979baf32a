"""The contract of sources, and their common functions for raw pairs, captions and keys.

No image is decoded here. An input that cannot be used becomes a RawPair with a `problem`, so that it is counted. A
fault that makes the whole source unreliable (a truncated tar) raises SourceError; a source never just ends early.
"""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from thousandwords.core.errors import InvalidInput, UserError

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "jpe", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTION = 4_000  # characters
MAX_CAPTION_BYTES = 1_000_000  # of a caption file, and of a line of a table


class SourceError(UserError):
    """A source cannot be read as a whole; the message names the remedy."""


@dataclass(frozen=True)
class RawPair:
    """One input as read from the source; `problem` says why it cannot become a pair."""

    key: str
    image: bytes | None
    captions: tuple[str, ...]
    provenance: str
    problem: InvalidInput | None = None
    recaptions: tuple[str, ...] = ()  # of the second caption column, unchanged
    shard: str | None = None  # the source file, if a file holds many pairs


class Source(ABC):
    """Raw pairs of one path or URL; each iteration gives the same pairs in the same order."""

    settings: ClassVar[tuple[str, ...]] = ()  # supported keys of the section `data`, besides path

    @abstractmethod
    def check(self) -> int:
        """The number of inputs (for remote tars an estimate); raises SourceError without any image or caption."""

    @abstractmethod
    def __iter__(self) -> Iterator[RawPair]: ...


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Strip texts, drop blank and repeated ones, keep the order: [" a cat", "", "a cat"] -> ("a cat",)."""
    captions = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not captions:
        raise InvalidInput("caption_empty", "it is blank")
    for caption in captions:
        if len(caption) > MAX_CAPTION:
            raise InvalidInput(
                "caption_too_long", f"{len(caption):,} characters; the limit is {MAX_CAPTION:,}"
            )
        if re.search("[\0\ud800-\udfff]", caption):
            raise InvalidInput("caption_encoding", f"not UTF-8 text: {ascii(caption[:60])}")
    return captions


def caption_bytes(read: Callable[[int], bytes]) -> bytes:
    """Read a caption file with `read(max_bytes)`; a file that is too large is rejected as a long caption."""
    try:
        return read(MAX_CAPTION_BYTES)
    except InvalidInput as problem:
        if problem.reason == "too_many_bytes":
            raise InvalidInput("caption_too_long", problem.detail) from problem
        raise


def captions_in_text(data: bytes) -> tuple[str, ...]:
    """The captions of a .txt file, one per line."""
    try:
        return clean_captions(data.decode("utf-8-sig").replace("\r\n", "\n").split("\n"))
    except UnicodeDecodeError as error:
        raise InvalidInput("caption_encoding", f"not UTF-8 text: {error}") from error


def json_object(data: bytes | str) -> dict:
    """Parse a JSON object; raises ValueError if it is not one."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}, not an object")
    return value


def as_texts(value: object) -> tuple[str, ...] | None:
    """A text, a list of texts or None as texts: "a" -> ("a",), None -> (). None for any other value."""
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return tuple(texts)
    return None


def key_of(name: str) -> str:
    r"""A file name as a UTF-8 key, different for each name: b"caf\xe9" -> "caf\\xe9"."""
    return name.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def suffix_of(name: str) -> str:
    """The suffix in lower case: "own/Cat.PNG" -> "png". pathlib would take ten times as long."""
    stem, _, suffix = os.path.basename(name.rstrip("/")).rpartition(".")
    return suffix.lower() if stem else ""


def read_raw_pair(
    key: str,
    provenance: str,
    read_image: Callable[[], bytes],
    read_captions: Callable[[], tuple[str, ...]],
    recaptions: tuple[str, ...] = (),
    digests: Iterable[object] = (),
    shard: str | None = None,
) -> RawPair:
    """Read image and captions, check the image against its sha256; an InvalidInput becomes the problem."""
    image = None
    try:
        image = read_image()
        for digest in digests:
            _check_sha256(image, digest)
        return RawPair(key, image, read_captions(), provenance, recaptions=recaptions, shard=shard)
    except InvalidInput as problem:
        return RawPair(key, image, (), provenance, problem, shard=shard)


def _check_sha256(image: bytes, expected: object) -> None:
    """Raise InvalidInput if the image has another sha256 than the field `expected`, unless that is empty."""
    if expected in (None, ""):
        return
    if not isinstance(expected, str) or not re.fullmatch("[0-9a-fA-F]{64}", expected.strip()):
        raise InvalidInput("bad_row", f"not a sha256 of 64 hexadecimal digits: {ascii(expected)[:100]}")
    sha256 = hashlib.sha256(image).hexdigest()
    if sha256 != expected.strip().lower():
        raise InvalidInput("hash_mismatch", f"its sha256 should be {expected.strip()}, found {sha256}")
