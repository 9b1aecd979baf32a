"""Image hashes and near duplicates: which changes keep a hash, the index against brute force, which images stay."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.images import jpeg, lighter, photo, resized
from thousandwords.ingest import perceptual_hash
from thousandwords.ingest.config import DataConfig
from thousandwords.ingest.near_duplicates import EXAMPLES, NearDuplicates, limits_by_chance
from thousandwords.ingest.perceptual_hash import (
    HashIndex,
    ImageHash,
    Neighbor,
    chance_hash_distance,
    image_hash_of,
)
from thousandwords.ingest.records import Pair
from thousandwords.scenes.render import scene_pairs

# ---- hashes


def difference(first: np.ndarray, second: np.ndarray) -> Neighbor:
    index = HashIndex(15)
    index.add(image_hash_of(first))
    return next(iter(index.near(image_hash_of(second))), Neighbor(64, 255, 0))


CHANGES = {
    "another encoding": lambda pixels: jpeg(pixels, 40),
    "smaller": lambda pixels: resized(pixels, 48),
    "larger": lambda pixels: resized(pixels, 200),
    "lighter": lambda pixels: lighter(pixels, 1.08),
    "darker": lambda pixels: lighter(pixels, 0.92),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_encoding_size_or_brightness_keeps_the_hash(change):
    photos, scenes = map(photo, range(20)), (pixels for _, pixels, _ in scene_pairs(20, 0, "train", 64))
    for images in (photos, scenes):
        differences = [difference(pixels, change(pixels)) for pixels in images]
        bits = [difference.distance for difference in differences]
        assert np.median(bits) <= 3 and max(bits) <= 6
        assert max(difference.color for difference in differences) <= 24


def test_different_images_have_different_hashes_and_plain_ones_the_hash_zero():
    values = np.array([image_hash_of(photo(seed)).hash for seed in range(60)], np.uint64)
    first, second = np.triu_indices(60, k=1)
    distances = perceptual_hash.distances(values[first], values[second])
    assert distances.min() > 8 and distances.mean() == pytest.approx(32, abs=1.5)
    assert {image_hash_of(np.full((64, 64, 3), gray, np.uint8)).hash for gray in (0, 7, 255)} == {0}


def test_the_hash_is_the_sign_of_the_low_frequencies():
    """Compared with the transform computed frequency by frequency."""
    gray = np.random.default_rng(1).integers(0, 256, (32, 32)).astype(float)
    position = np.arange(32)
    waves = [np.cos(np.pi * frequency * (2 * position + 1) / 64) / 4 for frequency in range(1, 9)]
    strengths = np.array([[down @ gray @ across for across in waves] for down in waves]).ravel()
    bits = strengths > 0.1 * np.sqrt((strengths**2).mean()) + 1
    assert f"{perceptual_hash.hashes(gray[None])[0]:064b}" == "".join(str(int(bit)) for bit in bits)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 15))
def test_the_index_finds_what_brute_force_finds_sorted_by_distance_then_color_then_index(data, max_distance):
    hash_and_gray = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3))
    images = data.draw(st.lists(hash_and_gray, min_size=1, max_size=20))
    flipped = data.draw(st.sets(st.integers(0, 63), max_size=max_distance + 2))
    query = data.draw(st.sampled_from(images))[0] ^ sum(1 << bit for bit in flipped)
    index, neighbors = HashIndex(max_distance), []
    for number, (value, gray) in enumerate(images):
        index.add(ImageHash(value, bytes([gray] * 192)))
        if (distance := (value ^ query).bit_count()) <= max_distance:
            neighbors.append(Neighbor(distance, gray, number))
    assert index.near(ImageHash(query, bytes(192))) == sorted(neighbors)


# ---- the limit chosen from the data


def test_the_tail_is_extrapolated_per_factor_of_ten():
    """1 % of the pairs are nearer than 20, 0.1 % nearer than 17: 0.01 % are nearer than 14, 0.001 % than 11."""
    pairs = np.sort(np.concatenate([np.full(1, 16.0), np.full(9, 18.0), np.full(9_990, 30.0)]))
    near, nearer = np.quantile(pairs, [0.01, 0.001])
    of_10, of_1000 = (perceptual_hash.chance_distance(pairs, count) for count in (10, 1000))
    assert of_10 == pytest.approx(nearer)  # 10 others × 0.1 % = 1 % of the images
    assert of_1000 == pytest.approx(nearer - 2 * (near - nearer))


def test_few_near_duplicates_hardly_change_the_limit_and_large_groups_do():
    values = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    with_duplicates = np.concatenate([values, values[:50]])
    groups = np.repeat(values[:40], 25)  # 1 pair in 40 is equal: equality is chance
    assert abs(chance_hash_distance(with_duplicates) - chance_hash_distance(values)) <= 1
    assert chance_hash_distance(groups) < 0


def test_if_all_images_look_alike_only_equal_ones_are_duplicates():
    alike = [ImageHash(0b1 << bit % 3, bytes([bit] * 192)) for bit in range(60)]
    config = DataConfig(near_duplicate_distance=None, near_duplicate_color=24)
    only_equal = dataclasses.replace(config, near_duplicate_distance=0, near_duplicate_color=0)
    assert limits_by_chance(iter(alike), config) == only_equal
    assert limits_by_chance(iter(alike[:1]), config) == limits_by_chance(iter([]), config) == only_equal
    values = np.random.default_rng(0).integers(0, 2**64, 500, np.uint64).tolist()
    limits = limits_by_chance([ImageHash(value, bytes(192)) for value in values], config)
    assert limits.near_duplicate_color == 24 and 8 <= limits.near_duplicate_distance <= 15


# ---- which images stay


def found(hashes: list[tuple[int, int]], distance: int, color: int) -> tuple[list[bool], list[dict]]:
    """(whether each of the images with these hashes and grays is a duplicate, the rows of the table)."""
    config = DataConfig(near_duplicate_distance=distance, near_duplicate_color=color)
    duplicates, outcomes = NearDuplicates(config), []
    for row, (value, gray) in enumerate(hashes):
        pair = Pair(str(row), b"png", ("",), "", image_hash=ImageHash(value, bytes([gray] * 192)))
        outcomes.append(duplicates.is_duplicate(pair, "train"))
    return outcomes, duplicates.rows


def test_a_chain_of_small_changes_is_not_one_group():
    """The third is near the second, which was dropped, and too far from the first."""
    outcomes, rows = found([(0b0, 0), (0b11, 0), (0b1111, 0)], distance=2, color=255)
    assert outcomes == [False, True, False]
    columns = [(row["key"], row["twin"], row["distance"], row["is_dropped"]) for row in rows]
    assert columns == [("1", "0", 2, True), ("2", "0", 4, False)]


def test_a_near_duplicate_is_found_beside_a_nearer_image_in_other_colors():
    outcomes, rows = found([(0b0, 200), (0b11, 0), (0b0, 0)], distance=2, color=24)
    assert outcomes == [False, False, True] and rows[-1]["twin"] == "1"


def test_a_few_example_images_of_each_distance_are_stored():
    hashes = [0, *[0b1] * 9, *(0b11 << bit for bit in range(2, 24, 2))]
    _, rows = found([(value, 0) for value in hashes], distance=1, color=255)
    dropped, near = ([row for row in rows if row["is_dropped"] is is_dropped] for is_dropped in (True, False))
    assert [row["image"] for row in dropped] == [b"png"] * EXAMPLES + [None] * 5
    assert len([row for row in near if row["distance"] == 2]) == EXAMPLES
    assert not any(row["image"] for row in near)


@pytest.mark.parametrize(
    ("caption", "other", "change", "is_dropped"),
    [
        ("flag: Italy", "flag: Ireland", 1, False),
        ("1", "7", 1, False),
        ("旗：意大利", "旗：爱尔兰", 1, False),
        ("a cat", "a cat on a mat", 1, True),  # says no other thing
        ("a cat on a mat", "our old tabby sleeping", 1, True),  # another description
        ("flag: Italy", "Flag: ITALY!", 1, True),
        ("1", "7", 0, True),  # the same image
    ],
)
def test_alike_images_stay_if_their_captions_name_different_things(caption, other, change, is_dropped):
    duplicates = NearDuplicates(DataConfig(near_duplicate_distance=2))
    first, second = (
        Pair(text, b"png", (text,), "", image_hash=ImageHash(value, bytes(192)))
        for text, value in ((caption, 0b0), (other, change))
    )
    assert not duplicates.is_duplicate(first, "train")
    assert duplicates.is_duplicate(second, "validation")  # held out, it would look like a training image
    assert duplicates.is_duplicate(second, "train") == is_dropped
