"""Small images for a page that can be mailed, in a format that every browser shows."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

QUALITY = 88  # of WebP: a candidate of 64 x 64 takes 0.6 kB instead of 7 as PNG


def thumbnail(pixels: np.ndarray, size: int) -> bytes:
    """uint8 (H, W, 3) -> WebP of at most `size` pixels in each direction; the same pixels give the same
    bytes."""
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
