"""Image hashes: which changes keep them; the index against brute force; the limit chosen from the data."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from thousandwords.ingest.perceptual_hash import (
    HashIndex,
    ImageHash,
    Neighbor,
    chance_distance,
    chance_hash_distance,
    distances,
    hashes,
    image_hash_of,
)
from thousandwords.scenes.render import scene_pairs

NO_COLORS = bytes(192)


def photo(seed: int, side: int = 64) -> np.ndarray:
    """Smooth like a photograph: 12 × 12 random colors, enlarged."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def lighter(pixels: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(pixels * factor, 0, 255).astype(np.uint8)


def difference(first: np.ndarray, second: np.ndarray) -> Neighbor:
    """The distance between two images."""
    index = HashIndex(15)
    index.add(image_hash_of(first))
    neighbors = index.near(image_hash_of(second))
    return neighbors[0] if neighbors else Neighbor(64, 255, 0)


# ---- hashes


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels,
        lambda pixels: jpeg(pixels, 75),
        lambda pixels: jpeg(pixels, 40),
        lambda pixels: resized(pixels, 48),
        lambda pixels: resized(pixels, 200),
        lambda pixels: lighter(pixels, 1.08),
        lambda pixels: lighter(pixels, 0.92),
    ],
)
@pytest.mark.parametrize("kind", ["photo", "scene"])
def test_another_encoding_size_or_brightness_keeps_the_hash(change, kind):
    images = (
        [photo(seed) for seed in range(20)]
        if kind == "photo"
        else [pixels for _, pixels, _ in scene_pairs(20, 0, "train", 64)]
    )
    differences = [difference(pixels, change(pixels)) for pixels in images]
    bits = [difference.distance for difference in differences]
    assert np.median(bits) <= 3 and max(bits) <= 6
    assert max(difference.color for difference in differences) <= 24


def test_different_images_have_different_hashes():
    values = hashes_of([photo(seed) for seed in range(60)])
    first, second = np.triu_indices(60, k=1)
    assert distances(values[first], values[second]).min() > 8
    assert distances(values[first], values[second]).mean() == pytest.approx(32, abs=1.5)


def test_plain_images_have_the_hash_zero():
    assert {image_hash_of(np.full((64, 64, 3), gray, np.uint8)).hash for gray in (0, 7, 128, 255)} == {0}


def hashes_of(images: list[np.ndarray]) -> np.ndarray:
    return np.array([image_hash_of(pixels).hash for pixels in images], np.uint64)


def test_the_hash_is_the_sign_of_the_low_frequencies():
    """Compared with the transform computed frequency by frequency."""
    gray = np.random.default_rng(1).integers(0, 256, (32, 32)).astype(float)
    position = np.arange(32)
    waves = [np.cos(np.pi * frequency * (2 * position + 1) / 64) / 4 for frequency in range(1, 9)]
    strengths = np.array([[down @ gray @ across for across in waves] for down in waves]).ravel()
    bits = strengths > 0.1 * np.sqrt((strengths**2).mean()) + 1
    assert f"{hashes(gray[None])[0]:064b}" == "".join(str(int(bit)) for bit in bits)


# ---- search


def brute_force(values: list[int], query: int, max_distance: int) -> list[Neighbor]:
    neighbors = [Neighbor((value ^ query).bit_count(), 0, index) for index, value in enumerate(values)]
    return sorted(neighbor for neighbor in neighbors if neighbor.distance <= max_distance)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 15))
def test_the_index_finds_what_brute_force_finds(data, max_distance):
    values = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
    flipped = data.draw(st.sets(st.integers(0, 63), max_size=max_distance + 2))
    query = data.draw(st.sampled_from(values)) ^ sum(1 << bit for bit in flipped)
    index = HashIndex(max_distance)
    for value in values:
        index.add(ImageHash(value, NO_COLORS))
    assert index.near(ImageHash(query, NO_COLORS)) == brute_force(values, query, max_distance)


def test_neighbors_sort_by_distance_then_color_then_index():
    index = HashIndex(3)
    for value, gray in ((0b111, 0), (0b1, 9), (0b10, 4), (0b100, 4), (0b11111111, 0)):
        index.add(ImageHash(value, bytes([gray] * 192)))
    assert index.near(ImageHash(0, bytes(192))) == [
        Neighbor(1, 4, 2),
        Neighbor(1, 4, 3),
        Neighbor(1, 9, 1),
        Neighbor(3, 0, 0),
    ]


# ---- the limit chosen from the data


def test_the_tail_is_extrapolated_per_factor_of_ten():
    """1 % of the pairs are nearer than 20, 0.1 % nearer than 17: 0.01 % are nearer than 14, 0.001 % than 11."""
    pairs = np.sort(np.concatenate([np.full(1, 16.0), np.full(9, 18.0), np.full(9_990, 30.0)]))
    near, nearer = np.quantile(pairs, [0.01, 0.001])
    assert chance_distance(pairs, count=10) == pytest.approx(nearer)  # 10 others × 0.1 % = 1 % of the images
    assert chance_distance(pairs, count=1000) == pytest.approx(nearer - 2 * (near - nearer))


def test_few_near_duplicates_hardly_change_the_limit_and_large_groups_do():
    values = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    with_duplicates = np.concatenate([values, values[:50]])
    groups = np.repeat(values[:40], 25)  # 1 pair in 40 is equal: equality is chance
    assert abs(chance_hash_distance(with_duplicates) - chance_hash_distance(values)) <= 1
    assert chance_hash_distance(groups) < 0
