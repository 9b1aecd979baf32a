"""Convert images between PNG bytes, uint8 pixels (H, W, 3) and floats (B, 3, H, W) in [0, 1]; resize them.

Only for our own PNG files; `image_decoding` decodes foreign bytes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # functions import torch late: a process that only decodes starts ten times faster
    from torch import Tensor


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) -> PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # speed matters more than size
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG bytes from encode_png -> uint8 (H, W, 3). Not for foreign bytes."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image)


def fit_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The largest centered square of (H, W, 3), resized to (size, size, 3) without aliasing."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if side == size:
        return square
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def area_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3): each pixel is the mean of the area that it covers.

    A source pixel that is partly covered counts by its part; with Pillow's BOX and torch's "area" fully or not at all.
    """
    rows = _area_means(pixels, height)  # (height, W, 3)
    columns = _area_means(rows.swapaxes(0, 1), width)  # (width, height, 3)
    return np.rint(columns.swapaxes(0, 1)).astype(np.uint8)


def _area_means(values: np.ndarray, size: int) -> np.ndarray:
    """Means of `size` equal intervals of the first axis, from the cumulative sum; exact in float64."""
    count = len(values)
    whole, rest = np.divmod(np.arange(size + 1) * count, size)  # ends: whole pixels, size-ths of a pixel
    sums = np.zeros((count + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=sums[1:], dtype=np.float64)
    ends = sums[whole]
    ends[:-1] += (rest[:-1] / size)[:, None, None] * values[whole[:-1]]
    return np.diff(ends, axis=0) * (size / count)


def to_float(pixels: np.ndarray, device: object = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) or (H, W, 3), then B = 1 -> float32 (B, 3, H, W) in [0, 1] on `device`."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        raise ValueError(f"to_float needs uint8 (B, H, W, 3) or (H, W, 3), got {pixels.dtype} {pixels.shape}")
    import torch

    batch = torch.tensor(pixels if pixels.ndim == 4 else pixels[None], device=device)
    return batch.permute(0, 3, 1, 2).float().div(255).contiguous()


def to_uint8(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W) -> uint8 (B, H, W, 3), rounded, clipped to [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"to_uint8 needs (B, 3, H, W), got {tuple(images.shape)}")
    import torch

    scaled = images.detach().float().clamp(0, 1).mul(255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
