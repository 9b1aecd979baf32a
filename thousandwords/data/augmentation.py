"""Random crops for training (arXiv 2102.12092, appendix, listings 1 and 2).

Both cut a square from the image, shrink it by area to a random side t, and take a random R × R crop. The
generator has to match captions: its square is near the center, t is at most 9/8 R, and nothing is flipped.
"""

import hashlib
from typing import Literal

import numpy as np
from PIL import Image

from thousandwords.data.images import area_resize

Augmentation = Literal["none", "paper"]


def tokenizer_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Listing 1: uint8 (H, W, 3) -> (size, size, 3), flipped left to right half of the time."""
    pixels = ensure_min_side(pixels, size)
    side = min(pixels.shape[:2])
    top, left = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
    square = pixels[top : top + side, left : left + side]
    crop = _shrunk_crop(square, tokenizer_sides(side, size), size, rng)
    return np.ascontiguousarray(crop[:, ::-1]) if rng.integers(2) else crop


def generator_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Listing 2: uint8 (H, W, 3) -> (size, size, 3), from near the center, never flipped."""
    pixels = ensure_min_side(pixels, size)
    side = min(pixels.shape[:2])
    top, left = (int(rng.choice(middle_offsets(length - side))) for length in pixels.shape[:2])
    square = pixels[top : top + side, left : left + side]
    return _shrunk_crop(square, generator_sides(side, size), size, rng)


def tokenizer_sides(side: int, size: int) -> range:
    """Possible sides t of the shrunk square: tokenizer_sides(1000, 256) -> range(288, 385)"""
    return range(min(side, round(9 / 8 * size)), min(side, round(12 / 8 * size)) + 1)


def generator_sides(side: int, size: int) -> range:
    """Possible sides t of the shrunk square: generator_sides(1000, 256) -> range(256, 289)"""
    return range(size, min(side, round(9 / 8 * size)) + 1)


def middle_offsets(slack: int) -> range:
    """Possible first pixels of a square with `slack` pixels of room: middle_offsets(80) -> range(30, 50)"""
    return range(3 * slack // 8, max(3 * slack // 8 + 1, 5 * slack // 8))


def ensure_min_side(pixels: np.ndarray, size: int) -> np.ndarray:
    """The image itself; if its short side is below `size`, enlarged to that as `images.fit_square` does."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    if side >= size:
        return pixels
    new_size = (round(width * size / side), round(height * size / side))
    return np.array(Image.fromarray(pixels).resize(new_size, Image.Resampling.BICUBIC))


def view_rng(seed: int, key: str, view: int) -> np.random.Generator:
    """Random generator for one view of one pair, independent of the order of the pairs."""
    digest = hashlib.sha256(f"view\0{seed}\0{view}\0{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _shrunk_crop(square: np.ndarray, sides: range, size: int, rng: np.random.Generator) -> np.ndarray:
    """Shrink a square to one of the `sides`, then take a random crop (size, size, 3)."""
    side = int(rng.choice(sides))
    shrunk = square if side == len(square) else area_resize(square, side, side)
    top, left = rng.integers(side - size + 1, size=2)
    return np.ascontiguousarray(shrunk[top : top + size, left : left + size])
