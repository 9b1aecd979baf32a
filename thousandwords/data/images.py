"""Pictures in their three forms: encoded bytes, uint8 pixels (H, W, 3), floats (B, 3, H, W) in [0, 1].

`decode_image` is the only door for foreign bytes. Pillow's own defaults turn 16-bit greys white and float
pictures black, drop alpha, and merely warn about a 400 kB file of 144 megapixels; here each is put right or
refused by name. Limits on time and memory are set by `workers`. Left out: colour profiles and frames after the first; a
`Picture` is flagged where it is animated or its profile is damaged.
"""
from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:    # torch is imported where tensors are made: a process that only decodes starts in a tenth of the time
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 64_000_000
MAX_PIXELS = 50_000_000
STRIP_PIXELS = 4_000_000    # flattened at once
WHITE = (255, 255, 255)
PLAIN_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")    # over 8 bits: convert() would clip them
ANIMATED, BAD_PROFILE = "animated", "bad_icc_profile"
FRAMED = ("PNG", "WEBP")    # where Pillow knows from the header whether more frames follow
PNG_START = b"\x89PNG\r\n\x1a\n"
ICC_HEADER, ICC_TAG = 132, 12    # bytes: up to the number of tags; of each line in their table
LABEL_LINES, LABEL_SIZE = 3, 10


class Refused(ValueError):
    """An input that can't be used: `reason` is a word to count by, `detail` a sentence to read."""

    def __init__(self, reason: str, detail: str):
        self.reason = reason
        self.detail = detail.encode("utf-8", "backslashreplace").decode()[:500]    # names on a disk may be any bytes
        super().__init__(f"{reason}: {self.detail}")

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)    # how it crosses to another process


class RefusedImage(Refused):
    """These bytes are no picture that we can use."""


@dataclass(frozen=True)
class Picture:
    """A picture that was taken in."""

    pixels: np.ndarray    # uint8 (H, W, 3), upright, flattened
    format: str           # by its content, whatever its name
    flags: tuple[str, ...] = ()    # ANIMATED: the first frame was taken; BAD_PROFILE: it says nothing of the colours


def decode_image(data: bytes, background: Sequence[int] = WHITE, min_side: int = 1,
                 max_aspect: float = float("inf")) -> np.ndarray:
    """Encoded bytes -> uint8 (H, W, 3), upright, flattened on `background`; or RefusedImage, or MemoryError."""
    return decode_picture(data, background, min_side, max_aspect).pixels


def decode_picture(data: bytes, background: Sequence[int] = WHITE, min_side: int = 1,
                   max_aspect: float = float("inf")) -> Picture:
    """`decode_image`, and what one may want to know of the bytes."""
    if not data:
        raise RefusedImage("empty_file", "the file has no bytes")
    if len(data) > MAX_BYTES:
        raise RefusedImage("too_many_bytes", f"{len(data):,} bytes; the limit is {MAX_BYTES:,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")    # Pillow's remarks on EXIF and palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(data, background, min_side, max_aspect)
        except (Refused, MemoryError):    # too little memory says nothing of the bytes
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise RefusedImage("too_many_pixels", str(error)) from error
        except UnidentifiedImageError as error:
            raise _unidentified(data) from error
        except Exception as error:    # a decoder fed with damage raises anything: SyntaxError, TypeError, ...
            raise _damaged(error, data) from error


def _decode(data: bytes, background: Sequence[int], min_side: int, max_aspect: float) -> Picture:
    _check_checksums(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_header(image, min_side, max_aspect)
        flags = _flags(image, data)
        image.load()    # before any look at EXIF: getexif() on a cut PNG would hide the cut
        _turn_upright(image)
        pixels = _flatten(image, background)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise RefusedImage("corrupt_data", f"decoded to an array of shape {pixels.shape}")
    return Picture(pixels, image.format, flags)


def _check_checksums(data: bytes) -> None:
    """RefusedImage where a chunk of a PNG is not what its checksum promised: Pillow does not look at that of the pixels."""
    start = len(PNG_START) if data.startswith(PNG_START) else len(data)
    while (end := start + 12 + int.from_bytes(data[start:start + 4])) <= len(data) and data[start + 4:start + 8] != b"IEND":
        if zlib.crc32(memoryview(data)[start + 4:end - 4]) != int.from_bytes(data[end - 4:end]):
            raise RefusedImage("corrupt_data", f"chunk {data[start + 4:start + 8]!r} at byte {start} has a wrong checksum")
        start = end


def _check_header(image: Image.Image, min_side: int, max_aspect: float) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RefusedImage("too_many_pixels", f"{width} x {height} pixels; the limit is {MAX_PIXELS:,}")
    if min(width, height) < min_side:
        raise RefusedImage("too_small", f"{width} x {height} pixels; min_side is {min_side}")
    if max(width, height) > max_aspect * min(width, height):
        raise RefusedImage("bad_aspect", f"{width} x {height} pixels; max_aspect is {max_aspect:g}")
    if image.mode not in PLAIN_MODES + ALPHA_MODES + DEEP_MODES:
        raise RefusedImage("bad_mode", f"pixels of mode {image.mode!r} are not supported")


def _flags(image: Image.Image, data: bytes) -> tuple[str, ...]:
    found = {ANIMATED: _is_animated(image, data),
             BAD_PROFILE: "icc_profile" in image.info and not _is_profile(image.info["icc_profile"])}
    return tuple(flag for flag, is_so in found.items() if is_so)


def _is_animated(image: Image.Image, data: bytes) -> bool:
    if image.format != "GIF":
        return image.format in FRAMED and image.is_animated
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=("GIF",)) as again:    # looking ahead moves it
        return again.is_animated
    return False    # what follows the first frame is damage


def _is_profile(profile: object) -> bool:
    """Whether this can be an ICC profile: its length, its signature, all its tags inside. No decoder of profiles is entered."""
    if not isinstance(profile, bytes) or len(profile) < ICC_HEADER or profile[36:40] != b"acsp":
        return False
    size, count = int.from_bytes(profile[:4]), int.from_bytes(profile[128:132])
    tags = range(ICC_HEADER, ICC_HEADER + ICC_TAG * min(count, size), ICC_TAG)
    ends = (sum(struct.unpack_from(">II", profile, tag + 4)) for tag in tags)
    return size <= len(profile) and tags.stop <= size and all(end <= size for end in ends)


def _turn_upright(image: Image.Image) -> None:
    """As EXIF says, in place (a copy would lose the TIFF tags); unreadable EXIF turns nothing."""
    with contextlib.suppress(Exception):    # the picture is sound, only its notes are not
        ImageOps.exif_transpose(image, in_place=True)


def _flatten(image: Image.Image, background: Sequence[int]) -> np.ndarray:
    """uint8 (H, W, 3), whatever the mode was."""
    if image.mode in DEEP_MODES:
        return _flatten_deep(image, background)
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if height <= rows:
        return _flatten_strip(image, background)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):    # whole, a picture of 50 megapixels would be in memory four times
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
    """Greys of 16 bits, 32 bits or floats, scaled by the range they are given in."""
    values = np.asarray(image).astype(np.float32)    # (H, W)
    grey = np.round(values / _white_value(image, values) * 255).astype(np.uint8)
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    if isinstance(image.info.get("transparency"), int):
        pixels[values == image.info["transparency"]] = background
    return pixels


def _white_value(image: Image.Image, values: np.ndarray) -> float:
    """The number that stands for white: known for 16 bits, else the least usual that holds all values."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]    # a TIFF may keep 12 bits in 16
        return 2 ** min(bits, 16) - 1
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        span = f"from {values.min():g} to {values.max():g}"
        raise RefusedImage("bad_mode", f"values of mode {image.mode!r} run {span}; what is white?")
    choices = (1, 255, 65535) if image.mode == "F" else (65535,)
    return next(white for white in choices if values.max() <= white)


def _unidentified(data: bytes) -> RefusedImage:
    """Another program's picture, or none at all; signatures are compared, no decoder is entered."""
    Image.init()
    for name, (_, accepts) in sorted(Image.OPEN.items()):
        if name not in FORMATS and accepts is not None and len(data) >= 16 and accepts(data[:16]) is True:
            return _bad_format(name)
    if data.startswith(b"%PDF"):    # Pillow writes them only
        return _bad_format("PDF")
    return RefusedImage("not_an_image", f"the bytes begin with {data[:16]!r}")


def _bad_format(name: str) -> RefusedImage:
    return RefusedImage("bad_format", f"looks like {name}; accepted are {', '.join(FORMATS)}")


def _damaged(error: Exception, data: bytes) -> RefusedImage:
    is_cut_webp = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    is_cut = is_cut_webp or (isinstance(error, OSError) and "truncated" in str(error).lower())
    return RefusedImage("truncated" if is_cut else "corrupt_data", f"{type(error).__name__}: {error}")


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) -> PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)    # speed is worth more than bytes
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """Bytes that encode_png wrote -> uint8 (H, W, 3). Not for foreign bytes."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image)


def fit_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square of (H, W, 3), resized to (size, size, 3) without aliasing."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top:top + side, left:left + side])
    if side == size:
        return square
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def area_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3): each pixel the mean of the area that it covers, parts of pixels in part.

    Neither Pillow's BOX nor torch's "area" does that but for whole factors: they count a pixel that is cut as whole or not.
    """
    rows = _area_means(pixels, height)    # (height, W, 3)
    columns = _area_means(rows.swapaxes(0, 1), width)    # (width, height, 3)
    return np.rint(columns.swapaxes(0, 1)).astype(np.uint8)


def _area_means(values: np.ndarray, size: int) -> np.ndarray:
    """The means of `size` equal lengths of the first axis, from the running sum at their ends; exact in float64."""
    count = len(values)
    whole, rest = np.divmod(np.arange(size + 1) * count, size)    # the ends, as whole steps and size-ths of a step
    sums = np.zeros((count + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=sums[1:], dtype=np.float64)
    ends = sums[whole]
    ends[:-1] += (rest[:-1] / size)[:, None, None] * values[whole[:-1]]
    return np.diff(ends, axis=0) * (size / count)


def to_float(pixels: np.ndarray, device: object = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) or (H, W, 3) -> float32 (B, 3, H, W) in [0, 1], made on that device; one picture gives B = 1."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        raise ValueError(f"to_float wants uint8 (B, H, W, 3) or (H, W, 3), got {pixels.dtype} {pixels.shape}")
    import torch

    batch = torch.tensor(pixels if pixels.ndim == 4 else pixels[None], device=device)
    return batch.permute(0, 3, 1, 2).float().div(255).contiguous()


def to_uint8(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W) -> uint8 (B, H, W, 3), rounded; what lies outside [0, 1] is clipped."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"to_uint8 wants (B, 3, H, W), got {tuple(images.shape)}")
    import torch

    scaled = images.detach().float().clamp(0, 1).mul(255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(images: np.ndarray, columns: int, pad: int = 4, labels: Sequence[str] | None = None,
         zoom: int = 1) -> np.ndarray:
    """A contact sheet, row by row: uint8 (B, H, W, 3) -> uint8 (H', W', 3), small text under each picture."""
    if len(images) == 0 or columns < 1 or (labels is not None and len(labels) != len(images)):
        found = f"{len(images)} images, {columns} columns, {'no' if labels is None else len(labels)} labels"
        raise ValueError(f"grid wants images, columns, and a label for every image or for none; got {found}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[1] * zoom, images.shape[2] * zoom
    font = ImageFont.load_default(LABEL_SIZE)
    wrapped = [_wrap(label, width, font) for label in labels or ()]
    cell = height + pad + max(map(len, wrapped), default=0) * (LABEL_SIZE + 2)
    sheet = Image.new("RGB", (pad + columns * (width + pad), pad + rows * cell), WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = pad + index % columns * (width + pad), pad + index // columns * cell
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(wrapped[index] if wrapped else ()):
            draw.text((left, top + height + number * (LABEL_SIZE + 2)), line, fill=(40, 40, 40), font=font)
    return np.array(sheet)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines that fit into `width` pixels, broken between words; what is too long ends in an ellipsis."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if line and font.getlength(joined) > width:
            lines, joined = [*lines, line], word
        line = joined
    lines = [*lines, line]
    if len(lines) > LABEL_LINES:
        lines = [*lines[:LABEL_LINES - 1], lines[LABEL_LINES - 1] + "…"]
    return [_shorten(line, width, font) for line in lines]


def _shorten(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = line.rstrip("…")[:-1] + "…"
    return line
