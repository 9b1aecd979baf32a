"""A PNG that says how it was drawn, so that anyone with the same models can draw it again, byte for byte.

The facts lie in one text chunk of the file (PNG specification, iTXt), as JSON: viewers pass over it, and a copy of the file keeps
it. It is read as anything from a stranger is: strictly, and never run. Left out: who drew it and when.
"""
from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from thousandwords.config import ConfigError, section
from thousandwords.drawing import Settings
from thousandwords.errors import UserError

CHUNK = "thousandwords"  # the keyword of the text chunk
HEAD = CHUNK.encode() + b"\0\0\0"  # how its chunk begins: the keyword's end, not compressed, no method
PNG = b"\x89PNG\r\n\x1a\n"
MOST = 2**20  # bytes of it that are read


@dataclass(frozen=True)
class Provenance:
    """What a picture follows from: the models, the caption, the seed, which candidate, and how it was drawn."""

    caption: str
    seed: int
    candidate: int
    package: str  # sha256 of the package's manifest
    settings: Settings  # with as many candidates as were asked for, `batch_size` of them drawn at a time
    given: tuple[int, ...] | None = None  # words of a picture that was completed, -1 where one was drawn

    def __post_init__(self) -> None:
        if not (_is_text(self.caption) and _is_text(self.package)):
            raise ValueError("provenance.caption and provenance.package are text, one holds what is no character")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"provenance.seed is {self.seed}; seeds run from 0 to 2^63 - 1")
        if not 0 <= self.candidate < self.settings.candidates:
            raise ValueError(f"provenance.candidate is {self.candidate} of {self.settings.candidates}; they count from 0")
        if not all(-1 <= word < 2**31 for word in self.given or ()):
            raise ValueError("provenance.given has words that no vocabulary has; they count from 0, and -1 is one to be drawn")


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON can name half a character, "\\ud800"."""
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


def with_provenance(picture: np.ndarray, provenance: Provenance) -> bytes:
    """uint8 (H, W, 3) -> PNG; the same picture and facts give the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, json.dumps(dataclasses.asdict(provenance), sort_keys=True))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=chunks, compress_level=6)
    return buffer.getvalue()


def provenance_of(data: bytes) -> Provenance | None:
    """What a PNG says of itself; None where it says nothing. Raises UserError where what it says is not to be understood."""
    text = _chunk(data)
    if text is None:
        return None
    try:
        return section(json.loads(text), "provenance", Provenance)
    except (ValueError, RecursionError) as error:
        reason = str(error).removeprefix("params.yaml: ") if isinstance(error, ConfigError) else "it is no JSON"
        raise UserError(f"what this picture says of how it was drawn is not to be understood: {reason[:300]}. "
                        "It was changed on the way, or written by another version of this code; draw it anew") from error


def _chunk(data: bytes) -> str | None:
    """The text of our chunk, found without a decoder: no pixel is unpacked, and no frame, however many a stranger's file has."""
    if not data.startswith(PNG):
        return None
    ours = [body for kind, body in _chunks(data) if kind == b"iTXt" and body.startswith(CHUNK.encode() + b"\0")]
    if not ours:
        return None
    if not ours[0].startswith(HEAD):
        raise UserError("what this picture says of how it was drawn was packed anew by another program. Give the file as it came")
    # behind a language and a translated keyword, both empty here
    text = ours[0].removeprefix(HEAD).split(b"\0", 2)[-1].decode(errors="replace")
    if len(text) > MOST:
        raise UserError("what this picture says of how it was drawn is longer than any that was drawn here. Draw it anew")
    return text


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the chunks of a PNG (its specification, part 5.3). Raises UserError where one is not whole.

    Not by Pillow, which unpacks every pixel to get at a text: half a megabyte can hold a hundred million of them.
    """
    start, kind = len(PNG), b""
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4])
        kind, body = data[start + 4 : start + 8], data[start + 8 : end - 4]
        if end > len(data) or zlib.crc32(kind + body) != int.from_bytes(data[end - 4 : end]):
            raise UserError("this picture is damaged: it is cut short, or its bytes have changed. Take another copy of it")
        yield kind, body
        start = end
