"""Damaged images: valid ones of each format and mode with random damage. The same seed gives the same bytes."""

import functools
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIZE = (40, 36)  # width, height
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
EXTREMES = tuple(
    map(bytes.fromhex, ["00000000", "ffffffff", "7fffffff", "ffffff7f", "80000000", "00000001", "01000000"])
)


@functools.cache
def valid_images() -> tuple[tuple[str, bytes], ...]:
    """(suffix, bytes) of about thirty: all formats, their modes, compressions and animations."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8))
    smooth = noise.resize((6, 6)).resize(SIZE, Image.Resampling.BICUBIC)
    rgba, exif = smooth.convert("RGBA"), Image.Exif()
    exif[274], exif[270] = 6, "described"
    again = {"save_all": True, "append_images": [noise, smooth.rotate(90)]}
    return (
        *(_encoded("jpg", smooth, **o) for o in ({}, {"progressive": True}, {"exif": exif, "quality": 30})),
        *(_encoded("jpg", smooth.convert(mode)) for mode in ("L", "CMYK")),
        *(_encoded("png", smooth.convert(mode)) for mode in ("RGB", "RGBA", "LA", "L", "P", "1", "I;16")),
        _encoded("png", smooth, exif=exif, **again),
        *(_encoded("gif", smooth, **options) for options in ({}, again)),
        *(_encoded("bmp", smooth.convert(mode)) for mode in ("RGB", "L", "P", "1")),
        *(_encoded("webp", rgba, **options) for options in ({}, {"lossless": True}, again, {"exif": exif})),
        *(_encoded("tif", smooth, compression=name) for name in TIFF_COMPRESSIONS),
        _encoded("tif", smooth.convert("1"), compression="group4"),
        *(_encoded("tif", smooth.convert(mode)) for mode in ("I;16", "F", "CMYK", "P")),
        _encoded("tif", smooth, exif=exif, **again),
    )


def _encoded(suffix: str, image: Image.Image, **options: object) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix), **options)
    return suffix, buffer.getvalue()


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for position in rng.integers(len(data), size=2 ** rng.integers(0, 7)):
        damaged[position] ^= 1 << rng.integers(8)
    return bytes(damaged)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(1, len(data))]


def leave_out(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * int(rng.integers(1, 20)) + data[end:]


def blank(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def splice(data: bytes, rng: np.random.Generator) -> bytes:
    """The beginning of one image and the end of another, of any format."""
    _, other = valid_images()[rng.integers(len(valid_images()))]
    return cut(data, rng) + other[rng.integers(len(other)) :]


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    position = rng.integers(2, min(64, len(data)))
    return data[:position] + rng.bytes(rng.integers(1, 5)) + data[position + 4 :]


def write_extremes(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace sizes, offsets and counts, mostly near the start, by 0, 1 or very large values."""
    for _ in range(rng.integers(1, 4)):
        position = int(len(data) * rng.random() ** 3)
        extreme = EXTREMES[rng.integers(len(EXTREMES))][: 2 * rng.integers(1, 3)]
        data = data[:position] + extreme + data[position + 4 :]
    return data


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = rng.integers(len(data))
    return start, min(len(data), start + 2 ** rng.integers(0, 10))


DAMAGES = (flip_bits, cut, leave_out, repeat, blank, splice, edit_header, write_extremes)


def damaged_images(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of damaged images; each image gets each damage in turn, and its name says which."""
    valid = valid_images()
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        suffix, data = valid[number % len(valid)]
        damage = DAMAGES[number // len(valid) % len(DAMAGES)]
        yield f"{number:05d}-{damage.__name__}.{suffix}", damage(data, rng)
