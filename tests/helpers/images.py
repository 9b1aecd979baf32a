"""Small images, files and tars for the tests of sources and of near duplicates."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from thousandwords.data.images import encode_png
from thousandwords.ingest.sources import Source


def png(seed: int = 0) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))


def png_of_chunks(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that declares a size, with further chunks, each its four letters and its data."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, *chunks)
    )


def noise(height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(seed: int, side: int = 64) -> np.ndarray:
    """Smooth like a photograph: 12 × 12 random colors, enlarged."""
    return resized(noise(12, 12, seed), side)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(encoded(pixels, "JPEG", quality=quality))))


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def lighter(pixels: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(pixels * factor, 0, 255).astype(np.uint8)


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes | str] | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def odd_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def outcome(source: Source) -> dict[str, tuple[str, ...] | str]:
    """{key: captions, or the reason of a rejection}; also checks that a second iteration gives the same."""
    pairs = list(source)
    assert [pair.key for pair in pairs] == [pair.key for pair in source]
    assert len({pair.key for pair in pairs}) == len(pairs) == source.check()
    assert all(pair.image for pair in pairs if not pair.problem)
    return {pair.key: pair.problem.reason if pair.problem else pair.captions for pair in pairs}


def details(source: Source) -> dict[str, str]:
    """{key: "reason: detail"} of the rejected inputs."""
    return {pair.key: str(pair.problem) for pair in source if pair.problem}


def by_reason(outcomes: dict[str, tuple[str, ...] | str]) -> tuple[dict, dict[str, list[str]]]:
    """({key: captions} of the accepted, {reason: keys} of the rejected ones)."""
    accepted = {key: captions for key, captions in outcomes.items() if isinstance(captions, tuple)}
    rejected: dict[str, list[str]] = {}
    for key in outcomes.keys() - accepted.keys():
        rejected.setdefault(outcomes[key], []).append(key)
    return accepted, {reason: sorted(keys, key=list(outcomes).index) for reason, keys in rejected.items()}
