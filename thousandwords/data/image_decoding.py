"""Untrusted image bytes -> uint8 (H, W, 3), with limits on bytes, pixels and formats.

All foreign bytes are decoded here. Pillow's defaults turn 16-bit grays white and float images black, drop
alpha, and only warn about a 400 kB file of 144 megapixels; here each case is converted correctly or rejected
with a reason. Time and memory are limited by `parallel.process_pool`. Left out: color profiles, and frames
after the first; a `DecodedImage` has a flag if it is animated or its profile is damaged.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from thousandwords.core.errors import InvalidInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

MAX_BYTES = 64_000_000

MAX_PIXELS = 50_000_000

STRIP_PIXELS = 4_000_000  # converted at a time

WHITE = (255, 255, 255)

PLAIN_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # more than 8 bits: convert() would clip them

ANIMATED, BAD_PROFILE = "animated", "bad_icc_profile"

FRAMED = ("PNG", "WEBP")  # formats whose header tells Pillow the number of frames

PNG_START = b"\x89PNG\r\n\x1a\n"

ICC_HEADER, ICC_TAG = 132, 12  # bytes: header including the number of tags; one entry of the tag table


class InvalidImage(InvalidInput):
    """These bytes are not a usable image."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and what was noticed about its file."""

    pixels: np.ndarray  # uint8 (H, W, 3), upright, flattened
    format: str  # by content, not by file name
    flags: tuple[str, ...] = ()  # ANIMATED: only the first frame was used; BAD_PROFILE: unreadable, ignored


def decode_image(
    data: bytes, background: Sequence[int] = WHITE, min_side: int = 1, max_aspect: float = float("inf")
) -> np.ndarray:
    """Decode bytes to uint8 (H, W, 3), upright, on `background`. Raises InvalidImage, or MemoryError."""
    return decode_with_flags(data, background, min_side, max_aspect).pixels


def decode_with_flags(
    data: bytes, background: Sequence[int] = WHITE, min_side: int = 1, max_aspect: float = float("inf")
) -> DecodedImage:
    """`decode_image`, with the format and the flags."""
    if not data:
        raise InvalidImage("empty_file", "the file has no bytes")
    if len(data) > MAX_BYTES:
        raise InvalidImage("too_many_bytes", f"{len(data):,} bytes; the limit is {MAX_BYTES:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about EXIF and palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(data, background, min_side, max_aspect)
        except (InvalidInput, MemoryError):  # a lack of memory is not a fault of the bytes
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise InvalidImage("too_many_pixels", str(error)) from error
        except UnidentifiedImageError as error:
            raise _unidentified(data) from error
        except Exception as error:  # decoders raise anything on damaged bytes: SyntaxError, TypeError, ...
            raise _damaged(error, data) from error


def _decode(data: bytes, background: Sequence[int], min_side: int, max_aspect: float) -> DecodedImage:
    _check_checksums(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_header(image, min_side, max_aspect)
        flags = _flags(image, data)
        image.load()  # before EXIF is read: getexif() would hide that a PNG is truncated
        _turn_upright(image)
        pixels = _flatten(image, background)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InvalidImage("corrupt_data", f"decoded to an array of shape {pixels.shape}")
    return DecodedImage(pixels, image.format, flags)


def _check_checksums(data: bytes) -> None:
    """Raise InvalidImage if a PNG chunk does not match its checksum: Pillow does not check pixel data."""
    start = len(PNG_START) if data.startswith(PNG_START) else len(data)
    while (end := start + 12 + int.from_bytes(data[start : start + 4])) <= len(data) and data[
        start + 4 : start + 8
    ] != b"IEND":
        if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise InvalidImage(
                "corrupt_data", f"chunk {data[start + 4 : start + 8]!r} at byte {start} has a wrong checksum"
            )
        start = end


def _check_header(image: Image.Image, min_side: int, max_aspect: float) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidImage("too_many_pixels", f"{width} x {height} pixels; the limit is {MAX_PIXELS:,}")
    if min(width, height) < min_side:
        raise InvalidImage("too_small", f"{width} x {height} pixels; min_side is {min_side}")
    if max(width, height) > max_aspect * min(width, height):
        raise InvalidImage("bad_aspect", f"{width} x {height} pixels; max_aspect is {max_aspect:g}")
    if image.mode not in PLAIN_MODES + ALPHA_MODES + DEEP_MODES:
        raise InvalidImage("bad_mode", f"pixels of mode {image.mode!r} are not supported")


def _flags(image: Image.Image, data: bytes) -> tuple[str, ...]:
    flags = {
        ANIMATED: _is_animated(image, data),
        BAD_PROFILE: "icc_profile" in image.info and not _is_profile(image.info["icc_profile"]),
    }
    return tuple(flag for flag, is_set in flags.items() if is_set)


def _is_animated(image: Image.Image, data: bytes) -> bool:
    if image.format != "GIF":
        return image.format in FRAMED and image.is_animated
    # a second copy: is_animated seeks to the next frame
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=("GIF",)) as copy:
        return copy.is_animated
    return False  # the bytes after the first frame are damaged


def _is_profile(profile: object) -> bool:
    """Whether this can be an ICC profile, by its length, signature and tag table. It is not decoded."""
    if not isinstance(profile, bytes) or len(profile) < ICC_HEADER or profile[36:40] != b"acsp":
        return False
    size, count = int.from_bytes(profile[:4]), int.from_bytes(profile[128:132])
    tags = range(ICC_HEADER, ICC_HEADER + ICC_TAG * min(count, size), ICC_TAG)
    ends = (sum(struct.unpack_from(">II", profile, tag + 4)) for tag in tags)
    return size <= len(profile) and tags.stop <= size and all(end <= size for end in ends)


def _turn_upright(image: Image.Image) -> None:
    """Rotate as EXIF says, in place (a copy would lose the TIFF tags); unreadable EXIF is ignored."""
    with contextlib.suppress(Exception):  # the pixels are fine, only the metadata is not
        ImageOps.exif_transpose(image, in_place=True)


def _flatten(image: Image.Image, background: Sequence[int]) -> np.ndarray:
    """Convert an image of any mode to uint8 (H, W, 3)."""
    if image.mode in DEEP_MODES:
        return _flatten_deep(image, background)
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if height <= rows:
        return _flatten_strip(image, background)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):  # in strips: 50 megapixels at once would be in memory four times
        bottom = min(height, top + rows)
        pixels[top:bottom] = _flatten_strip(image.crop((0, top, width, bottom)), background)
    return pixels


def _flatten_strip(image: Image.Image, background: Sequence[int]) -> np.ndarray:
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return np.array(image.convert("RGB"))


def _flatten_deep(image: Image.Image, background: Sequence[int]) -> np.ndarray:
    """Convert gray values of 16 bits, 32 bits or floats, scaled by their range."""
    values = np.asarray(image).astype(np.float32)  # (H, W)
    gray = np.round(values / _white_value(image, values) * 255).astype(np.uint8)
    pixels = np.repeat(gray[:, :, None], 3, axis=2)
    if isinstance(image.info.get("transparency"), int):
        pixels[values == image.info["transparency"]] = background
    return pixels


def _white_value(image: Image.Image, values: np.ndarray) -> float:
    """The value of white: fixed for 16 bits, else the smallest usual one that is not below any value."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # a TIFF may store 12 bits in 16
        return 2 ** min(bits, 16) - 1
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        span = f"from {values.min():g} to {values.max():g}"
        raise InvalidImage(
            "bad_mode", f"values of mode {image.mode!r} run {span}; the value of white is unknown"
        )
    choices = (1, 255, 65535) if image.mode == "F" else (65535,)
    return next(white for white in choices if values.max() <= white)


def _unidentified(data: bytes) -> InvalidImage:
    """The error for another image format, or for no image: compares signatures, decodes nothing."""
    Image.init()
    for name, (_, accepts) in sorted(Image.OPEN.items()):
        if name not in FORMATS and accepts is not None and len(data) >= 16 and accepts(data[:16]) is True:
            return _bad_format(name)
    if data.startswith(b"%PDF"):  # Pillow only writes PDF
        return _bad_format("PDF")
    return InvalidImage("not_an_image", f"the bytes begin with {data[:16]!r}")


def _bad_format(name: str) -> InvalidImage:
    return InvalidImage("bad_format", f"looks like {name}; accepted are {', '.join(FORMATS)}")


def _damaged(error: Exception, data: bytes) -> InvalidImage:
    is_cut_webp = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    is_cut = is_cut_webp or (isinstance(error, OSError) and "truncated" in str(error).lower())
    return InvalidImage("truncated" if is_cut else "corrupt_data", f"{type(error).__name__}: {error}")
