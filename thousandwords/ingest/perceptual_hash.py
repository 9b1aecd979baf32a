"""Find images that look the same: a 64-bit perceptual hash, and 8 × 8 mean colors to confirm it.

The hash is Zauner's pHash (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, §3.2.1)
with signs instead of the median: the cosine transform of a gray image of 32 × 32, of which the 8 × 8 lowest
frequencies without the constant ones give one bit each: above zero or not. A frequency that is almost absent gives 0:
with the median of ImageHash, a JPEG changes twice as many bits of our scenes (1.3 instead of 0.7, measured). Drawings
of one shape in two colors have the same hash; therefore the mean colors are compared too. Not found: mirrored or
rotated images, and crops by more than a few percent.

Axes: B, N images, K pairs of images.
"""

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE, FREQUENCIES, CELLS = 32, 8, 8  # per line: pixels of the gray image, bits of the hash, color cells
LUMA = (0.299, 0.587, 0.114)
MIN_AMPLITUDE = 0.1  # of the root mean square of all frequencies; a weaker one counts as absent
BANDS = 4  # of 16 bits
MAX_BITS = 15  # beyond it the search gets slow, and most neighbors are chance
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


class HashIndex:
    """Exact search for all images within `max_distance` bits, without comparing each image.

    One of the 4 bands of two such hashes differs by at most `max_distance` // 4 bits, so faiss looks each band up with
    that many bits flipped (multi-index hashing, arXiv 1307.2982).
    """

    def __init__(self, max_distance: int):
        import faiss  # late: worker processes only compute hashes

        self.max_distance = max_distance
        self._index = faiss.IndexBinaryMultiHash(64, BANDS, 64 // BANDS)
        self._index.nflip = max_distance // BANDS
        self._image_hashes: list[ImageHash] = []

    @property
    def hashes(self) -> np.ndarray:
        """The hashes uint64 (N,) in the order of `add`."""
        return np.array([image_hash.hash for image_hash in self._image_hashes], np.uint64)

    def add(self, image_hash: ImageHash) -> None:
        self._index.add(_bytes_of(image_hash))
        self._image_hashes.append(image_hash)

    def near(self, image_hash: ImageHash) -> list[Neighbor]:
        """All images within `max_distance` bits, nearest first."""
        if not self._image_hashes:
            return []
        _, bits, indices = self._index.range_search(
            _bytes_of(image_hash), self.max_distance + 1
        )  # below that
        return sorted(
            Neighbor(distance, _color_difference(image_hash, self._image_hashes[index]), index)
            for distance, index in zip(bits.tolist(), indices.tolist(), strict=True)
        )


def _color_difference(first: ImageHash, second: ImageHash) -> int:
    """The largest difference of a cell."""
    cells = np.frombuffer(first.colors + second.colors, np.uint8).astype(np.int16).reshape(2, -1)
    return int(np.abs(cells[0] - cells[1]).max())


def _bytes_of(image_hash: ImageHash) -> np.ndarray:
    return np.array([[image_hash.hash]], np.uint64).view(np.uint8)  # (1, 8)


def chance_distance(pair_distances: np.ndarray, count: int, share: float = CHANCE) -> float:
    """The distance at which `share` of the images have one of `count` others by chance, from random pairs (K,).

    The tail of the distribution, from the nearest 1 % to the nearest 0.1 % of the pairs, is extrapolated per factor of
    ten. True near duplicates, far fewer than one pair in a thousand, hardly change it.
    """
    near, nearer = np.quantile(pair_distances, [0.01, 0.001])
    return float(nearer - (near - nearer) * np.log10(0.001 * count / share))


def chance_hash_distance(hashes: np.ndarray, share: float = CHANCE) -> int:
    """The largest number of bits below `chance_distance` for hashes (N,); negative if there is none."""
    sample = hashes[:: max(1, len(hashes) // 2048)]
    first, second = np.triu_indices(len(sample), k=1)
    return int(np.ceil(chance_distance(distances(sample[first], sample[second]), len(hashes), share))) - 1
