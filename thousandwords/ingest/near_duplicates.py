"""Find duplicate pairs: exact ones (equal pixels and captions), or near ones (similar perceptual hashes).

Of near duplicates the first one stays, whatever their captions and splits are: then no image has a near
duplicate within training or across splits, and only the order of the source decides which one stays. An image
is compared only with images that stay, so a chain of small changes does not become one group. The captions of
dropped pairs are listed, not merged, because the pair that stays may already be written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from thousandwords.ingest.perceptual_hash import HashIndex, ImageHash, Neighbor, chance_hash_distance
from thousandwords.ingest.records import Pair

DUPLICATES = "duplicates.parquet"
MAX_BITS = 15  # beyond it the search gets slow, and most neighbors are chance
MARGIN = 4  # bits beyond the limit that are still listed, to show what a larger limit would drop
EXAMPLES = 4  # listed pairs that stay, and stored images of dropped pairs, for each distance
DUPLICATE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # of this pair, also if it is dropped
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("twin", pa.string(), nullable=False),  # key of the first such image, which stays
        pa.field("twin_split", pa.string(), nullable=False),
        pa.field("distance", pa.int64(), nullable=False),  # bits of 64
        pa.field("colour", pa.int64(), nullable=False),  # largest difference of a cell, of 255
        pa.field("is_dropped", pa.bool_(), nullable=False),
        pa.field("image", pa.binary()),  # PNG; of some dropped pairs
    ]
)


@dataclass(frozen=True)
class NearDuplicateLimits:
    """The largest differences between near duplicates."""

    distance: int  # bits of 64
    color: int  # of 255

    def __contains__(self, neighbor: Neighbor) -> bool:
        return neighbor.distance <= self.distance and neighbor.color <= self.color


def limits_by_chance(image_hashes: Iterable[ImageHash], color: int) -> NearDuplicateLimits:
    """The widest limits with few near duplicates by chance; (0, 0) if all images look alike."""
    hashes = np.fromiter((image_hash.hash for image_hash in image_hashes), np.uint64)
    distance = chance_hash_distance(hashes) if len(hashes) > 1 else -1
    return NearDuplicateLimits(min(distance, MAX_BITS), color) if distance >= 0 else NearDuplicateLimits(0, 0)


class ExactDuplicates:
    """Finds pairs with equal pixels and equal captions."""

    def __init__(self) -> None:
        self.count = 0
        self._digests: set[bytes] = set()

    def is_duplicate(self, pair: Pair, split: str) -> bool:
        """Whether an earlier pair is equal; remembers this pair."""
        digest = hashlib.sha256("\0".join(pair.captions).encode() + b"\0" + pair.image).digest()
        is_duplicate = digest in self._digests
        self._digests.add(digest)
        self.count += is_duplicate
        return is_duplicate


class NearDuplicates:
    """Finds pairs whose image looks like an earlier one; needs `pair.image_hash`."""

    def __init__(self, limits: NearDuplicateLimits):
        self.limits, self.count = limits, 0
        self.rows: list[dict] = []  # of DUPLICATE_SCHEMA
        self._index = HashIndex(min(limits.distance + MARGIN, MAX_BITS))
        self._indexed: list[tuple[str, str]] = []  # (key, split) of the pairs that stay, in index order
        self._num_listed: Counter = Counter()  # by (distance, is_dropped)

    def is_duplicate(self, pair: Pair, split: str) -> bool:
        """Whether an earlier image that stays looks like this one; remembers this pair if not."""
        neighbors = self._index.near(pair.image_hash)
        duplicate = next((neighbor for neighbor in neighbors if neighbor in self.limits), None)
        if neighbors:
            self._list(pair, split, duplicate or neighbors[0], is_dropped=duplicate is not None)
        if duplicate is None:
            self._index.add(pair.image_hash)
            self._indexed.append((pair.key, split))
        self.count += duplicate is not None
        return duplicate is not None

    def _list(self, pair: Pair, split: str, neighbor: Neighbor, is_dropped: bool) -> None:
        self._num_listed[neighbor.distance, is_dropped] += 1
        is_example = self._num_listed[neighbor.distance, is_dropped] <= EXAMPLES
        if is_dropped or is_example:
            key, neighbor_split = self._indexed[neighbor.index]
            self.rows.append(
                {
                    "key": pair.key,
                    "split": split,
                    "captions": list(pair.captions),
                    "twin": key,
                    "twin_split": neighbor_split,
                    "distance": neighbor.distance,
                    "colour": neighbor.color,
                    "is_dropped": is_dropped,
                    "image": pair.image if is_dropped and is_example else None,
                }
            )

    def summary(self) -> dict:
        """The block `near_duplicates` of the counts."""
        dropped = [row for row in self.rows if row["is_dropped"]]
        by_distance = Counter(row["distance"] for row in dropped)
        hashes = self._index.hashes
        return {
            "distance": self.limits.distance,
            "colour": self.limits.color,
            "by_chance": chance_hash_distance(hashes)
            if len(hashes) > 1
            else None,  # if chosen from these data
            "across_splits": sum(row["split"] != row["twin_split"] for row in dropped),
            "by_distance": {str(distance): by_distance[distance] for distance in sorted(by_distance)},
        }
