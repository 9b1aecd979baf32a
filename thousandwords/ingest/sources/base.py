"""The contract of sources, and their common functions for raw pairs, captions and keys.

No image is decoded here. An input that cannot be used becomes a RawPair with a `problem`, so that it is counted. A
fault that makes the whole source unreliable (a truncated tar) raises SourceError; a source never just ends early.
"""

import codecs
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from thousandwords.core.errors import InvalidInput, UserError
from thousandwords.core.files import LFS_FIX, LFS_POINTER

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "jpe", "webp", "gif", "bmp", "tif", "tiff")
IMAGE_SUFFIXES += ("jfif", "jif", "pjpeg", "pjp")  # JPEG too
# read, so that the decoder rejects them by name
OTHER_IMAGES = ("heic", "heif", "avif", "jxl", "jp2", "psd", "dng", "cr2", "cr3", "nef", "arw")
# keys of an object that stands for a text, as in Karpathy's splits and in conversations; who asks in these
TEXT_KEYS = ("raw", "caption", "text", "sentence", "value", "content")
ASKS = ("human", "user", "system")
UTF16_MARKS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE  # as Excel and Notepad write
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

    def images_beside(self) -> tuple[set[str], set[str]]:
        """After `check` or an iteration: (addresses of the listed images, of all images in their folder)."""
        return set(), set()


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
            raise InvalidInput("caption_encoding", f"not UTF-8 text: {ascii(caption[:60])}. Save it as UTF-8")
    return captions


def caption_bytes(read: Callable[[int], bytes]) -> bytes:
    """Read a caption file with `read(max_bytes)`; a file that is too large is rejected as a long caption."""
    try:
        return read(MAX_CAPTION_BYTES)
    except InvalidInput as problem:
        if problem.reason == "too_many_bytes":
            raise InvalidInput("caption_too_long", problem.detail) from problem
        raise


def captions_in_text(data: bytes, caption_lines: str = "separate") -> tuple[str, ...]:
    """The captions of a .txt file: one per line, or with "joined" the whole file as one."""
    if data.startswith(LFS_POINTER):
        raise InvalidInput("lfs_pointer", f"its caption file is {LFS_FIX}")
    try:
        text = data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput("caption_encoding", f"not UTF-8 text: {error}. Save it as UTF-8") from error
    lines = re.split("\r\n|\r|\n", text)
    return clean_captions([" ".join(text.split())] if caption_lines == "joined" else lines)


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
    """A text, a list of texts or None as texts: "a" -> ("a",), None or NaN -> (). None for any other value.

    An object stands for the text in it: [{"raw": "a"}] -> ("a",); in a conversation what a person asks is left out.
    """
    texts = () if value is None or value != value else (value,) if isinstance(value, str | dict) else value
    if not isinstance(texts, list | tuple):
        return None
    texts = [
        _text_of(text)
        for text in texts
        if not (isinstance(text, dict) and text.get("from", text.get("role")) in ASKS)
    ]
    return tuple(texts) if all(isinstance(text, str) for text in texts) else None


def _text_of(value: object) -> object:
    return next((value[key] for key in TEXT_KEYS if key in value), None) if isinstance(value, dict) else value


def captions_in_json(data: bytes, name: str) -> tuple[str, ...]:
    """The captions in a JSON object under `name`: a text or a list of texts."""
    try:
        value = json.loads(data)[name]
    except (KeyError, TypeError) as error:
        raise InvalidInput(
            "missing_pair",
            f"there is no .txt, and no {name!r} in the .json; data.caption_column names its key",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput("caption_encoding", f"the .json cannot be read: {error}") from error
    texts = None if value is None else as_texts(value)
    if texts is None:
        raise InvalidInput("caption_encoding", f"{name!r} in the .json is neither a text nor a list of texts")
    return clean_captions(texts)


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
