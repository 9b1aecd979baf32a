"""Words in the hand: set, flip, stitch; and what one sees of them."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thousandwords import workbench
from thousandwords.workbench import as_grid, colour, flip, heat_map, most_surprising, numbered, set_word, stitch

LEFT = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
RIGHT = LEFT + 10
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)

grids = st.integers(1, 6).flatmap(
    lambda side: st.lists(st.integers(0, 99), min_size=2 * side * side, max_size=2 * side * side).map(
        lambda words: torch.tensor(words).reshape(2, side, side)
    )
)


# --- words -----------------------------------------------------------------------------------------------------------


def test_one_word_is_set_and_the_grid_itself_stays():
    before = LEFT.clone()
    assert set_word(LEFT, 1, 2, 9, vocab_size=10).tolist() == [[0, 1, 2], [3, 4, 9], [6, 7, 8]]
    assert LEFT.equal(before)


@pytest.mark.parametrize(
    ("row", "column", "word", "sentence"),
    [
        (3, 0, 0, "there is no row 3: they run from 0 to 2"),
        (-1, 0, 0, "there is no row -1: they run from 0 to 2"),
        (0, 3, 0, "there is no column 3: they run from 0 to 2"),
        (0, 0, 10, "there is no word 10: they run from 0 to 9"),
        (0, 0, -1, "there is no word -1: they run from 0 to 9"),
    ],
)
def test_a_cell_or_a_word_that_is_not_there_is_refused(row, column, word, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        set_word(LEFT, row, column, word, vocab_size=10)


def test_a_flip_is_left_for_right():
    assert flip(LEFT).tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]


def test_a_stitch_is_the_left_of_one_and_the_right_of_the_other():
    assert stitch(LEFT, RIGHT, 2).tolist() == [[0, 1, 12], [3, 4, 15], [6, 7, 18]]
    assert stitch(LEFT, RIGHT).tolist() == [[0, 11, 12], [3, 14, 15], [6, 17, 18]]


@pytest.mark.parametrize("columns", [-1, 4])
def test_a_stitch_beyond_the_grid_is_refused(columns):
    with pytest.raises(ValueError, match=f"^{columns} columns cannot be taken from a grid of 3; take 0 to 3$"):
        stitch(LEFT, RIGHT, columns)


def test_grids_of_two_sizes_are_not_stitched():
    with pytest.raises(ValueError, match=r"grids of \(3, 3\) and \(2, 2\) words cannot be stitched; give two alike"):
        stitch(LEFT, RIGHT[:2, :2])


@given(grids, st.integers(0, 6))
def test_flips_and_stitches_obey_their_laws(pair, columns):
    one, other = pair
    columns = min(columns, len(one))

    assert flip(flip(one)).equal(one)
    assert stitch(one, one, columns).equal(one)
    assert stitch(one, other, len(one)).equal(one) and stitch(one, other, 0).equal(other)
    assert flip(stitch(one, other, columns)).equal(stitch(flip(other), flip(one), len(one) - columns))


def test_words_that_fill_no_square_are_refused():
    assert as_grid(torch.arange(4)).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="6 words form no square grid"):
        as_grid(torch.arange(6))


def test_the_most_surprising_cells_come_worst_first():
    nats = torch.log(torch.tensor([[0.5, 0.125, 1.0], [0.25, 0.125, 0.9], [1.0, 1.0, 1.0]]))
    assert most_surprising(nats, 3) == [(0, 1, pytest.approx(3)), (1, 1, pytest.approx(3)), (1, 0, pytest.approx(2))]
    assert len(most_surprising(nats, 100)) == 9


# --- to look at ------------------------------------------------------------------------------------------------------


def test_the_ramp_grows_lighter_all_the_way_and_goes_from_blue_to_yellow():
    ramp = colour(np.linspace(0, 1, 101))
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all() and lightness[0] < 20 and lightness[-1] > 200
    assert ramp.min() >= 0 and ramp.max() <= 255
    assert ramp[0].argmax() == 2 and ramp[-1].argmin() == 2
    assert np.array_equal(colour(np.array([-1.0, 2.0])), colour(np.array([0.0, 1.0])))


def test_a_heat_map_is_lightest_where_a_word_surprises_most():
    nats = torch.zeros(3, 3)
    nats[1, 2] = -4 * math.log(2)

    shown = heat_map(np.full((24, 24, 3), 100, np.uint8), nats)

    side = 3 * -(-512 // 3)
    assert shown.dtype == np.uint8 and shown.shape == (side + 56, side, 3)
    cells = shown[:side].reshape(3, side // 3, 3, side // 3, 3).mean(axis=(1, 3, 4))
    assert cells[1, 2] > 2 * np.delete(cells.ravel(), 5).max()
    assert np.ptp(np.delete(cells.ravel(), 5)) == 0


def test_a_heat_map_lets_the_picture_show_through():
    light = np.zeros((24, 24, 3), np.uint8)
    light[:, 12:] = 255
    shown = heat_map(light, torch.zeros(2, 2))
    assert shown[100, 400].mean() > shown[100, 100].mean() + 20


def test_heat_maps_of_one_scale_can_be_compared():
    few, many = (heat_map(PICTURE, torch.full((2, 2), -bits * math.log(2)), top=8) for bits in (2, 8))
    assert (few[:512] < many[:512]).mean() > 0.3 and few[:512].mean() < many[:512].mean()
    assert np.array_equal(few[512:], many[512:])  # the scale
    assert not np.array_equal(few[512:], heat_map(PICTURE, torch.full((2, 2), -2 * math.log(2)))[512:])


def test_every_cell_has_its_number_on_it():
    plain = np.full((24, 24, 3), 200, np.uint8)

    shown = numbered(plain, LEFT)
    other = numbered(plain, set_word(LEFT, 1, 2, 9, vocab_size=10))

    cell, margin = -(-512 // 3), workbench.MARGIN
    assert shown.shape == (3 * cell + margin, 3 * cell + margin, 3)
    rows, columns, _ = (shown != other).nonzero()  # the numbers differ, and in that cell only
    assert rows.min() >= margin + cell and rows.max() < margin + 2 * cell
    assert columns.min() >= margin + 2 * cell and columns.max() < margin + 3 * cell


def test_small_cells_are_enlarged_until_a_number_of_four_digits_fits():
    shown = numbered(np.zeros((64, 64, 3), np.uint8), torch.full((32, 32), 8191))
    assert shown.shape[0] == 32 * workbench.CELL + workbench.MARGIN


def test_the_same_words_give_the_same_pictures_and_nothing_is_changed():
    before, nats = PICTURE.copy(), -torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    copy = nats.clone()
    assert np.array_equal(heat_map(PICTURE, nats), heat_map(PICTURE, nats))
    assert np.array_equal(numbered(PICTURE, LEFT), numbered(PICTURE, LEFT))
    assert np.array_equal(PICTURE, before) and nats.equal(copy)
