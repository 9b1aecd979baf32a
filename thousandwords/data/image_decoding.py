"""Untrusted image bytes -> uint8 (H, W, 3), with limits on bytes, pixels and formats.

All foreign bytes are decoded here. Pillow's defaults turn 16-bit grays white and float images black, drop alpha, and
only warn about a 400 kB file of 144 megapixels; here each case is converted correctly or rejected with a reason:
`bad_format` for other image formats, `bad_mode` for modes and compressions that Pillow does not read. Left out: color
profiles, and frames after the first.
"""

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from thousandwords.core.errors import InvalidInput
from thousandwords.core.files import LFS_FIX, LFS_POINTER

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

OTHER_FORMATS = {  # that Pillow does not know, or takes for one of FORMATS: position and bytes of a signature
    "JPEG XL": ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n")),
    "JPEG XR": ((0, b"II\xbc"),),
    "JPEG-LS": ((0, b"\xff\xd8\xff\xf7"),),
    "PDF": ((0, b"%PDF"),),
    "XCF": ((0, b"gimp xcf"),),
    "OpenEXR": ((0, b"v/1\x01"),),
    "Radiance HDR": ((0, b"#?RADIANCE"), (0, b"#?RGBE")),
    "DjVu": ((0, b"AT&TFORM"),),
    "BPG": ((0, b"BPG\xfb"),),
    "FLIF": ((0, b"FLIF"),),
    "MNG": ((0, b"\x8aMNG"), (0, b"\x8bJNG")),
    "DICOM": ((128, b"DICM"),),
    "CR2": ((8, b"CR\x02"),),
    "CRW": ((6, b"HEAPCCDR"),),
    "RAF": ((0, b"FUJIFILMCCD-RAW"),),
    "ORF": ((0, b"IIRO"), (0, b"IIRS"), (0, b"MMOR")),
    "RW2": ((0, b"IIU\0"),),
    "X3F": ((0, b"FOVb"),),
    "MRW": ((0, b"\0MRM"),),
}
BRANDS = {  # of the file type box with which these formats begin
    "AVIF": (b"avif", b"avis"),
    "CR3": (b"crx ",),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"),
}
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DNG_VERSION, WEBP_IN_TIFF = 50706, 50001  # a tag and a value of the tag for the compression
UNSUPPORTED_BMP = re.compile(  # the other numbers are damage
    r"Unsupported BMP (bitfields layout|pixel depth \((0|2|64)\)|compression \(([456]|1[123])\))"
)
UNSUPPORTED_JPEG = re.compile(r"cannot handle (([2-9]|1[0-6])-bit layers|\d+-layer images)")


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
    if data.startswith(LFS_POINTER):
        raise InvalidImage("lfs_pointer", LFS_FIX)
    if name := _other_format(data):
        raise _bad_format(name)
    _check_checksums(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.format == "TIFF" and DNG_VERSION in image.tag_v2:
            raise _bad_format("DNG")
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
    while (end := start + 12 + int.from_bytes(data[start : start + 4])) <= len(data):
        name = data[start + 4 : start + 8]
        if name == b"IEND":
            return
        if zlib.crc32(memoryview(data)[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise InvalidImage("corrupt_data", f"chunk {name!r} at byte {start} has a wrong checksum")
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
    has_bad_profile = "icc_profile" in image.info and not _is_profile(image.info["icc_profile"])
    return (ANIMATED,) * _is_animated(image, data) + (BAD_PROFILE,) * has_bad_profile


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


def _other_format(data: bytes) -> str | None:
    """The name of another format whose signature the bytes have; decodes nothing."""
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in (8, *range(16, min(int.from_bytes(data[:4]), 256), 4))}
        return next((name for name, known in BRANDS.items() if brands & set(known)), None)
    for name, signatures in OTHER_FORMATS.items():
        if any(data.startswith(signature, position) for position, signature in signatures):
            return name
    return None


def _unidentified(data: bytes) -> InvalidImage:
    """The error for another image format, an unsupported mode, or no image; decodes nothing."""
    Image.init()
    for name, (_, accepts) in sorted(Image.OPEN.items()):
        if name not in FORMATS and accepts is not None and len(data) >= 16 and accepts(data[:16]) is True:
            return _bad_format(name)
    try:  # `Image.open` does not tell why it could not read the header
        JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception as error:
        if UNSUPPORTED_JPEG.fullmatch(str(error)):
            return InvalidImage("bad_mode", f"{str(error).removeprefix('cannot handle ')} are not supported")
    return _unsupported_tiff(data) or InvalidImage("not_an_image", f"the bytes begin with {data[:16]!r}")


def _bad_format(name: str) -> InvalidImage:
    return InvalidImage("bad_format", f"looks like {name}; accepted are {', '.join(FORMATS)}. Convert it")


def _unsupported_tiff(data: bytes, readable: Collection[int] = ()) -> InvalidImage | None:
    """The error for a whole TIFF of a plausible header in a compression that is not `readable`, or None."""
    try:
        file = io.BytesIO(data)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if data[2:4] in (b"+\0", b"\0+") else 8))
        file.seek(tags.next)
        tags.load(file)
        offsets, counts = (tags.get(strips) or tags[tiles] for strips, tiles in ((273, 324), (279, 325)))
        end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
        samples, bits, compression = tags.get(277, 1), max(tags.get(258, (1,))), tags.get(259, 1)
        least = min(tags[256], tags[257], *counts)
    except Exception:  # damaged, or no TIFF
        return None
    if end > len(data) or least < 1 or samples > 65535 or compression in readable:
        return None
    if DNG_VERSION in tags:
        return _bad_format("DNG")
    name = TiffImagePlugin.COMPRESSION_INFO.get(compression, compression)
    details = f"{samples} samples of {bits} bits and compression {name}"
    return InvalidImage("bad_mode", f"TIFF of {details} is not supported")


def _damaged(error: Exception, data: bytes) -> InvalidImage:
    if found := UNSUPPORTED_BMP.fullmatch(str(error)):
        return InvalidImage("bad_mode", f"BMP {found[1]} is not supported")
    if data.startswith(TIFF_STARTS):
        readable = TiffImagePlugin.COMPRESSION_INFO.keys() - {WEBP_IN_TIFF}
        if unsupported := _unsupported_tiff(data, readable):
            return unsupported
    is_cut_webp = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    is_cut = is_cut_webp or (isinstance(error, OSError) and "truncated" in str(error).lower())
    return InvalidImage("truncated" if is_cut else "corrupt_data", f"{type(error).__name__}: {error}")
