"""A PNG that says how it was drawn, so that anyone with the same models can draw it again, byte for byte.

The facts lie in one text chunk of the file (PNG specification, iTXt), as JSON: viewers pass over it, and a copy of the file keeps
it. It is read as anything from a stranger is: strictly, and never run. Left out: who drew it and when.
"""
from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin

from thousandwords.config import ConfigError, section
from thousandwords.drawing import Settings
from thousandwords.errors import UserError

CHUNK = "thousandwords"  # the keyword of the text chunk
PNG = b"\x89PNG\r\n\x1a\n"
MOST = 2**20  # characters of it that are read


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
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"provenance.seed is {self.seed}; seeds run from 0 to 2^63 - 1")
        if not 0 <= self.candidate < self.settings.candidates:
            raise ValueError(f"provenance.candidate is {self.candidate} of {self.settings.candidates}; they count from 0")


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
    """The text of our chunk, found without unpacking a pixel."""
    if not data.startswith(PNG):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            text = image.text.get(CHUNK)  # reads to the file's end
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"this picture is damaged: {error}. Take another copy of it") from error
    if text is not None and len(text) > MOST:
        raise UserError("what this picture says of how it was drawn is longer than any that was drawn here. Draw it anew")
    return text
