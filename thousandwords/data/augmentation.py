"""The random crops that the two stages are trained on (arXiv 2102.12092, listings 1 and 2 of the appendix).

Both take a square of the picture, shrink it by area to a random side t, and take a random R×R crop of that. The image tokenizer
sees any square, at up to 12/8 of R, turned left to right or not. The generator has to match captions: its square is near the
middle, t is at most 9/8 of R, and nothing is turned, since left is not right in a caption.
"""
from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from PIL import Image

from thousandwords.images import area_resize

Augmentation = Literal["none", "paper"]


def tokenizer_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Listing 1: uint8 (H, W, 3) -> (size, size, 3), perhaps turned left to right."""
    pixels = at_least(pixels, size)
    side = min(pixels.shape[:2])
    top, left = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
    square = pixels[top : top + side, left : left + side]
    crop = _shrunk_crop(square, tokenizer_sides(side, size), size, rng)
    return np.ascontiguousarray(crop[:, ::-1]) if rng.integers(2) else crop


def generator_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Listing 2: uint8 (H, W, 3) -> (size, size, 3), from near the middle and never turned."""
    pixels = at_least(pixels, size)
    side = min(pixels.shape[:2])
    top, left = (int(rng.choice(middle_offsets(length - side))) for length in pixels.shape[:2])
    square = pixels[top : top + side, left : left + side]
    return _shrunk_crop(square, generator_sides(side, size), size, rng)


def tokenizer_sides(side: int, size: int) -> range:
    """The sides t that a square may be shrunk to: tokenizer_sides(1000, 256) -> range(288, 385)"""
    return range(min(side, round(9 / 8 * size)), min(side, round(12 / 8 * size)) + 1)


def generator_sides(side: int, size: int) -> range:
    """The sides t that a square may be shrunk to: generator_sides(1000, 256) -> range(256, 289)"""
    return range(size, min(side, round(9 / 8 * size)) + 1)


def middle_offsets(slack: int) -> range:
    """Where a square may begin that has `slack` pixels of room: middle_offsets(80) -> range(30, 50)"""
    return range(3 * slack // 8, max(3 * slack // 8 + 1, 5 * slack // 8))


def at_least(pixels: np.ndarray, size: int) -> np.ndarray:
    """The picture itself, or, where its short side is below `size`, enlarged to it as `images.fit_square` would."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    if side >= size:
        return pixels
    wanted = (round(width * size / side), round(height * size / side))
    return np.array(Image.fromarray(pixels).resize(wanted, Image.Resampling.BICUBIC))


def view_rng(seed: int, key: str, view: int) -> np.random.Generator:
    """The random numbers of one view of one pair: the same in whatever order and company pairs are tokenised."""
    digest = hashlib.sha256(f"view\0{seed}\0{view}\0{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _shrunk_crop(square: np.ndarray, sides: range, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square -> shrunk to one of the `sides` -> a random (size, size, 3) of it."""
    side = int(rng.choice(sides))
    shrunk = square if side == len(square) else area_resize(square, side, side)
    top, left = rng.integers(side - size + 1, size=2)
    return np.ascontiguousarray(shrunk[top : top + size, left : left + size])
