"""The random crops of both models: positions, scales, flips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thousandwords.data import augmentation
from thousandwords.data.augmentation import (
    ensure_min_side,
    generator_crop,
    generator_sides,
    middle_offsets,
    tokenizer_crop,
    tokenizer_sides,
    view_rng,
)
from thousandwords.data.images import area_resize, fit_square

CROPS = [tokenizer_crop, generator_crop]


def coordinates(height: int, width: int) -> np.ndarray:
    """An image of its own coordinates: red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- numbers of the paper ---------------------------------------------------------------------------------------------


@pytest.mark.paper("tokenizer: augmentation")
@pytest.mark.parametrize(
    ("side", "first", "last"), [(1000, 288, 384), (384, 288, 384), (300, 288, 300), (260, 260, 260)]
)
def test_the_tokenizer_gets_squares_of_9_to_12_eighths_of_its_size(side, first, last):
    assert tokenizer_sides(side, 256) == range(first, last + 1)


@pytest.mark.paper("generator: augmentation")
@pytest.mark.parametrize(("side", "last"), [(1000, 288), (288, 288), (260, 260), (256, 256)])
def test_the_generator_gets_squares_of_8_to_9_eighths_of_its_size(side, last):
    assert generator_sides(side, 256) == range(256, last + 1)


@pytest.mark.paper("generator: augmentation")
@pytest.mark.parametrize(
    ("slack", "offsets"), [(0, [0]), (1, [0]), (2, [0]), (8, [3, 4]), (80, list(range(30, 50)))]
)
def test_the_generators_square_begins_in_the_middle_quarter_of_its_room(slack, offsets):
    assert list(middle_offsets(slack)) == offsets


@pytest.mark.paper("tokenizer: augmentation")
@pytest.mark.parametrize(
    ("crop", "sides"), [(tokenizer_crop, set(range(18, 25))), (generator_crop, set(range(16, 19)))]
)
def test_all_sides_are_sampled_and_no_others(monkeypatch, crop, sides):
    sampled = set()

    def spy(square, height, width):
        sampled.add((height, width))
        return area_resize(square, height, width)

    monkeypatch.setattr(augmentation, "area_resize", spy)
    for seed in range(200):
        crop(noise(40, 40), 16, rng(seed))

    assert sampled == {(side, side) for side in sides}


# --- positions of crops -------------------------------------------------------------------------------------------------


def corners(crop, height: int, width: int, size: int, samples: int = 400) -> set[tuple[int, int]]:
    """Top-left corners of crops, read from the pixels; the short side is `size`, so nothing is resized."""
    return {
        tuple(int(value) for value in crop(coordinates(height, width), size, rng(seed)).min(axis=(0, 1))[:2])
        for seed in range(samples)
    }


@pytest.mark.paper("tokenizer: augmentation")
def test_the_tokenizers_squares_lie_anywhere():
    assert corners(tokenizer_crop, 16, 24, 16) == {(0, left) for left in range(9)}
    assert corners(tokenizer_crop, 24, 16, 16) == {(top, 0) for top in range(9)}


def test_the_generators_squares_lie_near_the_middle():
    assert corners(generator_crop, 16, 32, 16) == {(0, left) for left in range(6, 10)}
    assert corners(generator_crop, 32, 16, 16) == {(top, 0) for top in range(6, 10)}


@pytest.mark.paper("tokenizer: augmentation", "generator: augmentation")
def test_half_of_the_tokenizers_crops_are_flipped_and_none_of_the_generators():
    def flipped(crop) -> float:
        crops = [crop(coordinates(20, 30), 16, rng(seed))[0, :, 1].astype(int) for seed in range(400)]
        return sum(row[0] > row[-1] for row in crops) / 400

    assert 0.42 < flipped(tokenizer_crop) < 0.58
    assert flipped(generator_crop) == 0


# --- shapes, small images, purity ----------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", CROPS)
@given(
    height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 24), seed=st.integers(0, 2**32)
)
def test_any_image_gives_a_square_of_its_own_colors(crop, height, width, size, seed):
    pixels = np.full((height, width, 3), 77, np.uint8)
    square = crop(pixels, size, rng(seed))
    assert square.shape == (size, size, 3) and square.dtype == np.uint8
    assert (square == 77).all()


@pytest.mark.parametrize("crop", CROPS)
def test_the_same_numbers_give_the_same_crop_and_the_image_is_not_changed(crop):
    pixels = noise(40, 50)
    first, again, other = (crop(pixels, 16, rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert (pixels == noise(40, 50)).all()
    first[:] = 0
    assert (pixels == noise(40, 50)).all()


def test_a_small_image_is_enlarged_like_the_center_square():
    assert ensure_min_side(noise(8, 12), 16).shape == (16, 24, 3)
    assert ensure_min_side(noise(12, 8), 16).shape == (24, 16, 3)
    small = noise(8, 8)
    assert (ensure_min_side(small, 16) == fit_square(small, 16)).all()
    assert (generator_crop(small, 16, rng()) == fit_square(small, 16)).all()
    assert ensure_min_side(noise(16, 20), 16).shape == (16, 20, 3)


def test_each_view_of_each_pair_has_its_own_random_numbers():
    numbers = {
        (seed, key, view): view_rng(seed, key, view).random()
        for seed in (0, 1)
        for key in ("a", "b")
        for view in (0, 1)
    }
    assert len(set(numbers.values())) == 8
    assert view_rng(0, "a", 0).random() == numbers[0, "a", 0]
