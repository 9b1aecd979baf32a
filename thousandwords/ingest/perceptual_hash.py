"""Find images that look the same: a 64-bit perceptual hash, and 8 × 8 mean colors to confirm it. Numpy only.

The hash is Zauner's pHash (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, §3.2.1)
with signs instead of the median: the cosine transform of a gray image of 32 × 32, of which the 8 × 8 lowest
frequencies without the constant ones give one bit each: above zero or not. A frequency that is almost absent
gives 0. Symmetric drawings have many such frequencies; with a median, half of their bits would be noise.
Another encoding, size or brightness changes only a few bits. Drawings of one shape in two colors have the
same hash but different captions; therefore the mean colors are compared too.

Not found: mirrored images (with "left" in the caption they are different images), crops by more than a few
percent, rotations. Small details, such as the hands of a clock, are ignored. `evaluation.image_fidelity`
compares images by meaning instead.

Axes: B, N, M images, K pairs of images.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE, FREQUENCIES, CELLS = 32, 8, 8  # per line: pixels of the gray image, bits of the hash, color cells
LUMA = (0.299, 0.587, 0.114)
MIN_AMPLITUDE = 0.1  # of the root mean square of all frequencies; a weaker one counts as absent
BANDS, BAND_BITS = 4, 16  # of the 64 bits
MAX_BITS = 15  # beyond it the search gets slow, and most neighbors are chance
ROWS_AT_ONCE = 512  # limits the size of the distance table (rows, M)
CHANCE = 0.01  # share of images that may have a neighbor within the threshold by chance


@dataclass(frozen=True)
class ImageHash:
    """Perceptual hash and mean colors of an image, in 200 bytes."""

    hash: int  # 64 bits
    colors: bytes  # 8 × 8 cells of red, green, blue


@dataclass(frozen=True, order=True)
class Neighbor:
    """An indexed image and its differences; neighbors sort by distance, then color, then index."""

    distance: int  # bits of 64
    color: int  # the largest difference of a cell's color, of 255
    index: int


def image_hash_of(pixels: np.ndarray) -> ImageHash:
    """The image hash of pixels, uint8 (H, W, 3)."""
    image = Image.fromarray(pixels)
    gray = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) @ np.array(LUMA)  # (32, 32)
    colors = image.resize((CELLS, CELLS), Image.Resampling.BOX)
    return ImageHash(int(hashes(gray[None])[0]), colors.tobytes())


def hashes(grays: np.ndarray) -> np.ndarray:
    """Hash gray images (B, 32, 32) in 0 … 255 to uint64 (B,)."""
    cosines = _cosines()
    amplitudes = (cosines @ grays @ cosines.T).reshape(len(grays), -1)  # (B, 64)
    rms = np.sqrt(np.square(amplitudes).mean(axis=1, keepdims=True))
    # + 1, so that all frequencies of a plain image count as absent
    return np.packbits(amplitudes > MIN_AMPLITUDE * rms + 1, axis=1).view(">u8").astype(np.uint64)[:, 0]


@functools.cache
def _cosines() -> np.ndarray:
    """Matrix (8, 32) of the cosine transform (DCT-II) from 32 pixels to the frequencies 1 to 8."""
    frequency, position = np.arange(1, FREQUENCIES + 1)[:, None], np.arange(SIDE)
    return np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * position + 1) / (2 * SIDE))


def distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number of different bits: uint64 of broadcastable shapes -> uint8."""
    return np.bitwise_count(hashes ^ others)


def nearest(hashes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N,) and indices (N,) of the nearest of `others` (M,) for each of `hashes` (N,)."""
    tables = [
        distances(hashes[start : start + ROWS_AT_ONCE, None], others)
        for start in range(0, len(hashes), ROWS_AT_ONCE)
    ]
    index = np.concatenate([table.argmin(axis=1) for table in tables]) if tables else np.empty(0, np.int64)
    return distances(hashes, others[index]), index


class HashIndex:
    """Exact search for all images within `max_distance` bits, without comparing each image.

    If two hashes of 4 bands differ by at most `max_distance` bits, one band differs by at most `max_distance`
    // 4 (pigeonhole principle). So each neighbor has a band equal to one of the query with that many bits
    flipped (multi-index hashing, Norouzi et al., arXiv 1307.2982). Half a kilobyte per image.
    """

    def __init__(self, max_distance: int):
        self.max_distance = max_distance
        num_bits = np.bitwise_count(np.arange(2**BAND_BITS))
        self._flips = np.flatnonzero(num_bits <= max_distance // BANDS).tolist()  # few bits set
        self._images_by_band: dict[int, list[int]] = {}  # band number and bits -> indices of images
        self._hashes = np.empty(1024, np.uint64)
        self._colors = np.empty((1024, CELLS * CELLS * 3), np.uint8)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def hashes(self) -> np.ndarray:
        """The hashes uint64 (N,) in the order of `add`."""
        return self._hashes[: self._size].copy()

    def add(self, image_hash: ImageHash) -> None:
        if self._size == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._colors = np.concatenate([self._colors, np.empty_like(self._colors)])
        self._hashes[self._size] = image_hash.hash
        self._colors[self._size] = np.frombuffer(image_hash.colors, np.uint8)
        for band in _bands(image_hash.hash):
            self._images_by_band.setdefault(band, []).append(self._size)
        self._size += 1

    def near(self, image_hash: ImageHash) -> list[Neighbor]:
        """All images within `max_distance` bits, nearest first."""
        bands = (band ^ flip for band in _bands(image_hash.hash) for flip in self._flips)
        candidates = list(itertools.chain.from_iterable(self._images_by_band.get(band, ()) for band in bands))
        if not candidates:
            return []
        index = np.unique(candidates)
        distance = distances(self._hashes[index], np.uint64(image_hash.hash))
        index, distance = index[distance <= self.max_distance], distance[distance <= self.max_distance]
        color = np.abs(self._colors[index] - np.frombuffer(image_hash.colors, np.uint8).astype(np.int16)).max(
            axis=1, initial=0
        )
        return sorted(map(Neighbor, distance.tolist(), color.tolist(), index.tolist()))


def _bands(value: int) -> list[int]:
    """The four bands of a hash, each with its number in the bits above."""
    return [(band << BAND_BITS) | (value >> (band * BAND_BITS)) & (2**BAND_BITS - 1) for band in range(BANDS)]


def chance_distance(pair_distances: np.ndarray, count: int, share: float = CHANCE) -> float:
    """The distance at which `share` of the images have one of `count` others by chance, from random pairs (K,).

    The tail of the distribution, from the nearest 1 % to the nearest 0.1 % of the pairs, is extrapolated per
    factor of ten. True near duplicates, far fewer than one pair in a thousand, hardly change it. It is strict
    for few images or similar ones.
    """
    near, nearer = np.quantile(pair_distances, [0.01, 0.001])
    return float(nearer - (near - nearer) * np.log10(0.001 * count / share))


def chance_hash_distance(hashes: np.ndarray, share: float = CHANCE) -> int:
    """The largest number of bits below `chance_distance` for hashes (N,); negative if there is none."""
    sample = hashes[:: max(1, len(hashes) // 2048)]
    first, second = np.triu_indices(len(sample), k=1)
    return int(np.ceil(chance_distance(distances(sample[first], sample[second]), len(hashes), share))) - 1
