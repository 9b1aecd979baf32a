"""A PNG that records how it was generated: with the same models it can be generated again, byte for byte.

The record is JSON in one text chunk (PNG specification, iTXt), which viewers ignore and copies keep. It is
untrusted input: checked strictly, and never run. Left out: who generated the image, and when.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.inference.config import SamplingConfig

CHUNK = "thousandwords"  # the keyword of the text chunk
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_LENGTH = 2**20


@dataclass(frozen=True)
class Provenance:
    """All that an image follows from."""

    caption: str
    seed: int
    candidate: int
    package: str  # sha256 of the package's manifest
    settings: SamplingConfig  # `candidates`: the number requested; `batch_size`: how many at a time
    fixed_tokens: tuple[int, ...] | None = None  # of an inpainted image, -1 where a token was sampled

    def __post_init__(self) -> None:
        if not (_is_encodable(self.caption) and _is_encodable(self.package)):
            raise ValueError(
                "provenance.caption and provenance.package are text; one has an invalid character"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"provenance.seed is {self.seed}; seeds run from 0 to 2^63 - 1")
        if not 0 <= self.candidate < self.settings.candidates:
            raise ValueError(
                f"provenance.candidate is {self.candidate} of {self.settings.candidates}; they count from 0"
            )
        if not all(-1 <= token < 2**31 for token in self.fixed_tokens or ()):
            raise ValueError(
                "provenance.fixed_tokens has tokens that no vocabulary has; they count from 0, and -1 is one to be sampled"
            )

    def to_dict(self) -> dict:
        """The values as files hold them: fixed tokens have the key "given", as in earlier files."""
        values = dataclasses.asdict(self)
        return values | {"given": values.pop("fixed_tokens")}

    @classmethod
    def from_dict(cls, values: object) -> Provenance:
        """The provenance in values from a file, checked strictly; raises ConfigError."""
        if isinstance(values, dict) and "given" in values:
            values = {"fixed_tokens" if key == "given" else key: value for key, value in values.items()}
        return section(values, "provenance", cls)


def _is_encodable(text: str) -> bool:
    """Whether text can be written as UTF-8: JSON can hold half a character, "\\ud800"."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def encode_png_with_provenance(image: np.ndarray, provenance: Provenance) -> bytes:
    """uint8 (H, W, 3) -> PNG; the same image and provenance give the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, json.dumps(provenance.to_dict(), sort_keys=True))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks, compress_level=6)
    return buffer.getvalue()


def read_provenance(data: bytes) -> Provenance | None:
    """The provenance in a PNG, None where there is none. Raises UserError where it cannot be read."""
    text = _read_text(data)
    if text is None:
        return None
    try:
        return Provenance.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        reason = (
            str(error).removeprefix("params.yaml: ") if isinstance(error, ConfigError) else "it is not JSON"
        )
        raise UserError(
            f"cannot read this PNG's provenance: {reason[:300]}. "
            "It was changed, or written by another version of this code. Generate the image again"
        ) from error


def _read_text(data: bytes) -> str | None:
    """The text of our chunk, with every checksum verified and no pixel decoded: Pillow's `.info` hides that another
    program compressed a text, and its `verify` misses a flipped bit in the last chunk."""
    if not data.startswith(PNG_SIGNATURE):
        return None
    stream, kind, texts = io.BytesIO(data[len(PNG_SIGNATURE) :]), b"", []
    try:
        with PngImagePlugin.ChunkStream(stream) as chunks:
            while kind != b"IEND":
                kind, _, length = chunks.read()
                body = stream.read(length)
                chunks.crc(kind, body)
                if kind == b"iTXt" and body.startswith(CHUNK.encode() + b"\0"):
                    texts.append(body.removeprefix(CHUNK.encode()))
    except (SyntaxError, struct.error) as error:
        raise UserError(
            "this image is damaged: it is cut short, or its bytes have changed. Use another copy of it"
        ) from error
    if not texts:
        return None
    if not texts[0].startswith(b"\0\0\0"):  # the keyword's end, not compressed, no compression method
        raise UserError(
            "cannot read this PNG's provenance: another program has rewritten it. Give the original file"
        )
    # after a language and a translated keyword, both empty here
    text = texts[0][3:].split(b"\0", 2)[-1].decode(errors="replace")
    if len(text) > MAX_TEXT_LENGTH:
        raise UserError(
            f"cannot read this PNG's provenance: it has more than {MAX_TEXT_LENGTH:,} characters. "
            "Generate the image again"
        )
    return text
