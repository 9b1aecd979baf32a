"""Which pictures look the same, told from very small looks at them: a perceptual hash, and colours to confirm it. Numpy only.

The hash is Zauner's pHash (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, §3.2.1) with signs in place
of the median: of a grey picture of 32 × 32 the cosine transform, of that the 8 × 8 lowest frequencies but the constant ones, of
each a bit: is it above zero. A frequency that is all but absent is 0, for a symmetric drawing has many such, and beside a median
their noise would be half of its bits. A new encoding, another size or light leave all but a few bits as they are. Two drawings of
one shape in two colours have one hash, and their captions tell the colours: hence the second look, at 8 × 8 mean colours.

What it can't see: a mirrored copy (other bits: for a caption with "left" it is another picture), a crop by more than a few per
cent, a rotation, a small detail such as the hand of a clock. `likeness` compares by meaning what this compares by looks.

Axes: B, N, M pictures, K pairs of them.
"""
from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE, FREQUENCIES, CELLS = 32, 8, 8    # of the grey picture, of the hash, of the colours; a line each
LUMA = (0.299, 0.587, 0.114)
SILENCE = 0.1    # of the root mean square of all frequencies: below it one is absent
BANDS, BAND_BITS = 4, 16    # of the 64 bits
ROWS_AT_ONCE = 512    # bounds the table (rows, M) of distances
CHANCE = 0.01    # of the pictures may have a neighbour as near as a threshold without being a twin


@dataclass(frozen=True)
class Look:
    """What a picture looks like, in 200 bytes."""

    hash: int    # 64 bits
    colours: bytes    # 8 × 8 cells of red, green, blue


@dataclass(frozen=True, order=True)
class Neighbour:
    """A picture that was seen before, and how far it is; the nearest is the least, and of equals the first that was seen."""

    distance: int    # bits of 64
    colour: int    # the largest difference of a cell's colour, of 255
    index: int


def look_of(pixels: np.ndarray) -> Look:
    """The look of a picture, uint8 (H, W, 3)."""
    image = Image.fromarray(pixels)
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) @ np.array(LUMA)    # (32, 32)
    colours = image.resize((CELLS, CELLS), Image.Resampling.BOX)
    return Look(int(hashes(grey[None])[0]), colours.tobytes())


def hashes(greys: np.ndarray) -> np.ndarray:
    """Grey pictures (B, 32, 32), from 0 to 255 -> their hashes, uint64 (B,)."""
    cosines = _cosines()
    strengths = (cosines @ greys @ cosines.T).reshape(len(greys), -1)    # (B, 64)
    silence = SILENCE * np.sqrt(np.square(strengths).mean(axis=1, keepdims=True)) + 1    # plain pictures are silent, not noisy
    return np.packbits(strengths > silence, axis=1).view(">u8").astype(np.uint64)[:, 0]


@functools.cache
def _cosines() -> np.ndarray:
    """The cosine transform (DCT-II) from 32 pixels to the frequencies 1 to 8: (8, 32)."""
    frequency, place = np.arange(1, FREQUENCIES + 1)[:, None], np.arange(SIDE)
    return np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


def distances(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many bits differ: uint64 of any shapes that broadcast -> uint8."""
    return np.bitwise_count(ours ^ others)


def nearest(ours: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` (M,) to each of `ours` (N,), the first of equals: distances (N,), indices (N,). Each with each."""
    found = [distances(ours[start : start + ROWS_AT_ONCE, None], others) for start in range(0, len(ours), ROWS_AT_ONCE)]
    index = np.concatenate([table.argmin(axis=1) for table in found]) if found else np.empty(0, np.int64)
    return distances(ours, others[index]), index


class Index:
    """Pictures seen so far, searched by hash without a look at each: exact, to `reach` bits.

    By the pigeonhole: of two hashes that differ by `reach` bits in 4 bands, one band differs by `reach` // 4 at most. So all
    that is near lies among the pictures that share a band with the one sought, or with what its band becomes by that many flips
    (Norouzi et al., Fast Search in Hamming Space with Multi-Index Hashing, arXiv 1307.2982). Half a kilobyte a picture.
    """

    def __init__(self, reach: int):
        self.reach = reach
        self._flips = _flips(reach // BANDS)
        self._places: dict[int, list[int]] = {}    # band and its bits -> pictures
        self._hashes = np.empty(1024, np.uint64)
        self._colours = np.empty((1024, CELLS * CELLS * 3), np.uint8)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def hashes(self) -> np.ndarray:
        """uint64 (N,), in the order in which they were added."""
        return self._hashes[: self._size].copy()

    def add(self, look: Look) -> None:
        if self._size == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._colours = np.concatenate([self._colours, np.empty_like(self._colours)])
        self._hashes[self._size] = look.hash
        self._colours[self._size] = np.frombuffer(look.colours, np.uint8)
        for place in _bands(look.hash):
            self._places.setdefault(place, []).append(self._size)
        self._size += 1

    def near(self, look: Look) -> list[Neighbour]:
        """All pictures within reach, nearest first."""
        places = (place ^ flip for place in _bands(look.hash) for flip in self._flips)
        found = list(itertools.chain.from_iterable(self._places.get(place, ()) for place in places))
        if not found:
            return []
        index = np.unique(found)
        bits = distances(self._hashes[index], np.uint64(look.hash))
        index, bits = index[bits <= self.reach], bits[bits <= self.reach]
        colour = np.abs(self._colours[index] - np.frombuffer(look.colours, np.uint8).astype(np.int16)).max(axis=1, initial=0)
        return sorted(map(Neighbour, bits.tolist(), colour.tolist(), index.tolist()))


def _bands(value: int) -> list[int]:
    """The four bands of a hash, each with its number above its bits."""
    return [(band << BAND_BITS) | (value >> (band * BAND_BITS)) & (2**BAND_BITS - 1) for band in range(BANDS)]


def _flips(count: int) -> list[int]:
    """All numbers of 16 bits with `count` bits or fewer."""
    chosen = itertools.chain.from_iterable(itertools.combinations(range(BAND_BITS), bits) for bits in range(count + 1))
    return [sum(1 << bit for bit in bits) for bits in chosen]


def by_chance(apart: np.ndarray, others: int, share: float = CHANCE) -> float:
    """The distance at which `share` of all pictures have one of `others` that near by chance, from pairs at random (K,).

    The tail of the pairs, from their nearest 1 % to their nearest 0.1 %, is carried on by as many steps of ten as it takes. So
    true twins, far fewer than one pair in a thousand, hardly move it; where families look alike, or pictures
    are few, it gets strict.
    """
    near, nearer = np.quantile(apart, [0.01, 0.001])
    return float(nearer - (near - nearer) * np.log10(0.001 * others / share))


def hash_by_chance(values: np.ndarray, share: float = CHANCE) -> int:
    """The most bits short of `by_chance`, of pictures with hashes (N,) among themselves; below 0 if even equal is chance."""
    some = values[:: max(1, len(values) // 2048)]
    first, second = np.triu_indices(len(some), k=1)
    return int(np.ceil(by_chance(distances(some[first], some[second]), len(values), share))) - 1
