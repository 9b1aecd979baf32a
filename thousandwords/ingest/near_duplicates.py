"""Find duplicate pairs: exact ones (equal pixels and captions), or near ones (similar perceptual hashes).

Of near duplicates the first one stays; both stay if they are in one split, the images differ a little and the
captions say that they show different things ("flag: Italy", "flag: Ireland"). An image is compared only with images
that stay, so a chain of small changes does not become one group.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.perceptual_hash import (
    MAX_BITS,
    HashIndex,
    ImageHash,
    Neighbor,
    chance_hash_distance,
)
from thousandwords.ingest.records import Pair
from thousandwords.text.words import words

DUPLICATES = "duplicates.parquet"
NAME_WORDS = 3  # of the longest name by which captions of two things differ
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


def limits_by_chance(image_hashes: Iterable[ImageHash], config: DataConfig) -> DataConfig:
    """The config with the widest limits that give few near duplicates by chance; 0 if all images look alike."""
    hashes = np.fromiter((image_hash.hash for image_hash in image_hashes), np.uint64)
    distance = chance_hash_distance(hashes) if len(hashes) > 1 else -1
    if distance < 0:
        return replace(config, near_duplicate_distance=0, near_duplicate_color=0)
    return replace(config, near_duplicate_distance=min(distance, MAX_BITS))


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
    """Finds pairs whose image looks like an earlier one; needs `pair.image_hash` and a distance."""

    def __init__(self, config: DataConfig):
        self.config, self.count = config, 0
        self.rows: list[dict] = []  # of DUPLICATE_SCHEMA
        self._index = HashIndex(min(config.near_duplicate_distance + MARGIN, MAX_BITS))
        # (key, split, words of the captions) of the pairs that stay, in index order
        self._indexed: list[tuple[str, str, frozenset[str]]] = []
        self._num_listed: Counter = Counter()  # by (distance, is_dropped)

    def is_duplicate(self, pair: Pair, split: str) -> bool:
        """Whether an earlier image that stays looks like this one; remembers this pair if not."""
        distance, color = self.config.near_duplicate_distance, self.config.near_duplicate_color
        neighbors = self._index.near(pair.image_hash)
        own_words = frozenset(word for caption in pair.captions for word in words(caption))
        near = (
            neighbor
            for neighbor in neighbors
            if neighbor.distance <= distance
            and neighbor.color <= color
            and not self._differ(neighbor, split, own_words)
        )
        duplicate = next(near, None)
        if neighbors:
            self._list(pair, split, duplicate or neighbors[0], is_dropped=duplicate is not None)
        if duplicate is None:
            self._index.add(pair.image_hash)
            self._indexed.append((pair.key, split, own_words))
        self.count += duplicate is not None
        return duplicate is not None

    def _differ(self, neighbor: Neighbor, split: str, own_words: frozenset[str]) -> bool:
        """Whether the captions differ by a name (each has as many words that the other lacks), and the images a little:
        another description of one shot is no other thing.

        Never across splits: a held-out image that looks like a training image says little."""
        _, other_split, others = self._indexed[neighbor.index]
        is_other_image = bool(neighbor.distance or neighbor.color)
        own, other = len(own_words - others), len(others - own_words)
        return split == other_split and is_other_image and 0 < own == other <= NAME_WORDS

    def _list(self, pair: Pair, split: str, neighbor: Neighbor, is_dropped: bool) -> None:
        self._num_listed[neighbor.distance, is_dropped] += 1
        is_example = self._num_listed[neighbor.distance, is_dropped] <= EXAMPLES
        if is_dropped or is_example:
            key, neighbor_split, _ = self._indexed[neighbor.index]
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
        by_distance = Counter(row["distance"] for row in self.rows if row["is_dropped"])
        hashes = self._index.hashes
        return {
            "distance": self.config.near_duplicate_distance,
            "colour": self.config.near_duplicate_color,
            # if it were chosen from these data
            "by_chance": chance_hash_distance(hashes) if len(hashes) > 1 else None,
            "across_splits": sum(
                row["is_dropped"] and row["split"] != row["twin_split"] for row in self.rows
            ),
            "by_distance": {str(distance): by_distance[distance] for distance in sorted(by_distance)},
        }
