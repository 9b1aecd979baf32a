"""Which pairs have been there before: copies (the same pixels and captions), or near twins (`twins`, the same look), as one asks.

Of near twins the first that came in stays, whatever their captions say and whichever split the others would have fallen to: so
no picture has a twin, in training or across the split, and the order of the source alone settles who stays. Twins of twins are
compared with what stays only, so that a chain of small changes is no family. The captions of what is dropped are listed, not
merged: what stays may be written long since.
"""
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from thousandwords.twins import Index, Look, Neighbour, hash_by_chance

DUPLICATES = "duplicates.parquet"
MOST_BITS = 15    # further than that the search slows down, and by far most pictures are chance
MARGIN = 4    # bits beyond the limit that are still listed, so that one can see what a looser limit would take
EXAMPLES = 4    # of each distance that are listed though they stay, and pictures kept of those that don't
DUPLICATE_SCHEMA = pa.schema([
    pa.field("key", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),    # that it would have fallen to, or is in
    pa.field("captions", pa.list_(pa.string()), nullable=False),
    pa.field("twin", pa.string(), nullable=False),    # key of the first such picture, which stays
    pa.field("twin_split", pa.string(), nullable=False),
    pa.field("distance", pa.int64(), nullable=False),    # bits of 64
    pa.field("colour", pa.int64(), nullable=False),    # largest difference of a cell, of 255
    pa.field("is_dropped", pa.bool_(), nullable=False),
    pa.field("image", pa.binary()),    # PNG; of some that were dropped
])


@dataclass(frozen=True)
class Nearness:
    """How far a twin may be."""

    distance: int    # bits of 64
    colour: int    # of 255

    def __contains__(self, neighbour: Neighbour) -> bool:
        return neighbour.distance <= self.distance and neighbour.colour <= self.colour


def limits_by_chance(looks: Iterable[Look], colour: int) -> Nearness:
    """The widest limits within which hardly a picture has a twin by chance; equal looks alone where all look alike."""
    hashes = np.fromiter((look.hash for look in looks), np.uint64)
    bits = hash_by_chance(hashes) if len(hashes) > 1 else -1
    return Nearness(min(bits, MOST_BITS), colour) if bits >= 0 else Nearness(0, 0)


class Copies:
    """Finds pairs of the same pixels under the same captions."""

    def __init__(self) -> None:
        self.count = 0
        self._digests: set[bytes] = set()

    def has(self, pair, split: str) -> bool:
        """Was it there before; if not, it is from now on."""
        digest = hashlib.sha256("\0".join(pair.captions).encode() + b"\0" + pair.image).digest()
        is_known = digest in self._digests
        self._digests.add(digest)
        self.count += is_known
        return is_known


class NearTwins:
    """Finds pairs whose picture looks like an earlier one's; `pair.look` is given."""

    def __init__(self, limits: Nearness):
        self.limits, self.count = limits, 0
        self.rows: list[dict] = []    # of DUPLICATE_SCHEMA
        self._index = Index(min(limits.distance + MARGIN, MOST_BITS))
        self._kept: list[tuple[str, str]] = []    # key and split, as the index counts
        self._listed: Counter = Counter()    # by distance and fate

    def has(self, pair, split: str) -> bool:
        """Was its like there before; if not, it is from now on."""
        near = self._index.near(pair.look)
        twin = next((neighbour for neighbour in near if neighbour in self.limits), None)
        if twin or near:
            self._list(pair, split, twin or near[0], is_dropped=twin is not None)
        if twin is None:
            self._index.add(pair.look)
            self._kept.append((pair.key, split))
        self.count += twin is not None
        return twin is not None

    def _list(self, pair, split: str, other: Neighbour, is_dropped: bool) -> None:
        self._listed[other.distance, is_dropped] += 1
        is_example = self._listed[other.distance, is_dropped] <= EXAMPLES
        if is_dropped or is_example:
            key, twin_split = self._kept[other.index]
            self.rows.append({
                "key": pair.key, "split": split, "captions": list(pair.captions), "twin": key, "twin_split": twin_split,
                "distance": other.distance, "colour": other.colour, "is_dropped": is_dropped,
                "image": pair.image if is_dropped and is_example else None,
            })    # fmt: skip

    def summary(self) -> dict:
        """The block `near_duplicates` of the counts."""
        dropped = [row for row in self.rows if row["is_dropped"]]
        by_distance = Counter(row["distance"] for row in dropped)
        return {
            "distance": self.limits.distance,
            "colour": self.limits.colour,
            "by_chance": hash_by_chance(self._index.hashes) if len(self._index) > 1 else None,    # bits that the data would pick
            "across_splits": sum(row["split"] != row["twin_split"] for row in dropped),
            "by_distance": {str(bits): by_distance[bits] for bits in sorted(by_distance)},
        }
