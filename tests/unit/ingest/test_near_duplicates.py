"""Near duplicates among given image hashes: which stay, and which are listed as examples."""

from __future__ import annotations

import dataclasses

import numpy as np

from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.near_duplicates import EXAMPLES, NearDuplicates, limits_by_chance
from thousandwords.ingest.perceptual_hash import ImageHash
from thousandwords.ingest.records import Pair


def test_a_chain_of_small_changes_is_not_one_group():
    """The third is near the second, which was dropped, and too far from the first."""
    duplicates = NearDuplicates(DataConfig(near_duplicate_distance=2, near_duplicate_color=255))
    outcomes = [
        duplicates.is_duplicate(
            Pair(str(value), b"", ("",), "", image_hash=ImageHash(value, bytes(192))), "train"
        )
        for value in (0b0, 0b11, 0b1111)
    ]
    assert outcomes == [False, True, False]
    assert [(row["key"], row["twin"], row["distance"], row["is_dropped"]) for row in duplicates.rows] == [
        ("3", "0", 2, True),
        ("15", "0", 4, False),
    ]


def test_a_near_duplicate_is_found_beside_a_nearer_image_in_other_colors():
    duplicates = NearDuplicates(DataConfig(near_duplicate_distance=2, near_duplicate_color=24))
    image_hashes = [
        ImageHash(0b0, bytes([200] * 192)),
        ImageHash(0b11, bytes(192)),
        ImageHash(0b0, bytes(192)),
    ]
    outcomes = [
        duplicates.is_duplicate(Pair(str(row), b"", ("",), "", image_hash=image_hash), "train")
        for row, image_hash in enumerate(image_hashes)
    ]
    assert outcomes == [False, False, True] and duplicates.rows[-1]["twin"] == "1"


def test_a_few_example_images_of_each_distance_are_stored():
    duplicates = NearDuplicates(DataConfig(near_duplicate_distance=1, near_duplicate_color=255))
    for row, value in enumerate([0, *[0b1] * 9, *(0b11 << bit for bit in range(2, 24, 2))]):
        duplicates.is_duplicate(
            Pair(str(row), b"png", ("",), "", image_hash=ImageHash(value, bytes(192))), "train"
        )
    dropped, near = (
        [row for row in duplicates.rows if row["is_dropped"] is is_dropped] for is_dropped in (True, False)
    )
    assert len(dropped) == 9 and [row["image"] for row in dropped] == [b"png"] * EXAMPLES + [None] * 5
    assert len([row for row in near if row["distance"] == 2]) == EXAMPLES and not any(
        row["image"] for row in near
    )


def test_if_all_images_look_alike_only_equal_ones_are_duplicates():
    alike = [ImageHash(0b1 << bit % 3, bytes([bit] * 192)) for bit in range(60)]
    config = DataConfig(near_duplicate_distance=None, near_duplicate_color=24)
    only_equal = dataclasses.replace(config, near_duplicate_distance=0, near_duplicate_color=0)
    assert limits_by_chance(iter(alike), config) == only_equal
    assert limits_by_chance(iter(alike[:1]), config) == limits_by_chance(iter([]), config) == only_equal
    others = [
        ImageHash(int(value), bytes(192))
        for value in np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)
    ]
    limits = limits_by_chance(others, config)
    assert limits.near_duplicate_color == 24 and 8 <= limits.near_duplicate_distance <= 15
