"""The random crops of both models: positions, scales, flips."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.images import noise
from thousandwords.data import augmentation
from thousandwords.data.augmentation import ensure_min_side, generator_crop, tokenizer_crop, view_rng
from thousandwords.data.images import area_resize, fit_square

CROPS = [tokenizer_crop, generator_crop]


def coordinates(height: int, width: int) -> np.ndarray:
    """An image of its own coordinates: red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.paper("tokenizer: augmentation", "generator: augmentation")
@pytest.mark.parametrize(
    ("crop", "side", "sides"),
    [
        (tokenizer_crop, 40, range(18, 25)),  # 9 to 12 eighths of 16
        (tokenizer_crop, 20, range(18, 20)),  # or 20, unchanged
        (tokenizer_crop, 17, ()),
        (generator_crop, 40, range(16, 19)),  # 8 to 9 eighths
        (generator_crop, 17, [16]),
    ],
)
def test_squares_are_shrunk_to_all_sides_of_the_paper_and_to_no_others(monkeypatch, crop, side, sides):
    sampled = set()

    def spy(square, height, width):
        sampled.add((height, width))
        return area_resize(square, height, width)

    monkeypatch.setattr(augmentation, "area_resize", spy)
    for seed in range(200):
        crop(noise(side, side), 16, rng(seed))
    assert sampled == {(shrunk, shrunk) for shrunk in sides}


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


@pytest.mark.paper("generator: augmentation")
@pytest.mark.parametrize(("room", "offsets"), [(1, [0]), (2, [0]), (8, [3, 4]), (16, range(6, 10))])
def test_the_generators_squares_begin_in_the_middle_quarter_of_their_room(room, offsets):
    assert corners(generator_crop, 16, 16 + room, 16) == {(0, left) for left in offsets}
    assert corners(generator_crop, 16 + room, 16, 16) == {(top, 0) for top in offsets}


@pytest.mark.paper("tokenizer: augmentation", "generator: augmentation")
def test_half_of_the_tokenizers_crops_are_flipped_and_none_of_the_generators():
    def flipped(crop) -> float:
        crops = [crop(coordinates(20, 30), 16, rng(seed))[0, :, 1].astype(int) for seed in range(400)]
        return sum(row[0] > row[-1] for row in crops) / 400

    assert 0.42 < flipped(tokenizer_crop) < 0.58
    assert flipped(generator_crop) == 0


@pytest.mark.parametrize("crop", CROPS)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)), size=st.integers(1, 24), seed=st.integers(0, 99)
)
def test_any_image_gives_a_square_of_its_own_colors(crop, shape, size, seed):
    square = crop(np.full((*shape, 3), 77, np.uint8), size, rng(seed))
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
    views = list(itertools.product((0, 1), "ab", (0, 1)))
    numbers = [view_rng(*view).random() for view in views]
    assert len(set(numbers)) == 8 and view_rng(*views[0]).random() == numbers[0]
