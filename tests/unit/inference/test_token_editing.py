"""Edit tokens (set, flip, stitch), label them and map their surprisal."""

import math

import numpy as np
import pytest
import torch

from thousandwords.inference import token_editing
from thousandwords.inference.token_editing import as_grid, heat_map, label_tokens, set_token, stitch

GRID = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)


def test_tokens_that_form_no_square_and_grids_of_two_sizes_are_rejected():
    assert as_grid(torch.arange(4)).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="6 tokens do not form a square grid"):
        as_grid(torch.arange(6))
    assert stitch(GRID, GRID + 10).tolist() == [[0, 11, 12], [3, 14, 15], [6, 17, 18]]
    with pytest.raises(ValueError, match="tokens cannot be stitched; give two of one shape"):
        stitch(GRID, GRID[:2, :2])


def test_a_heat_map_is_lightest_where_a_token_is_surprising_most():
    nats = torch.zeros(3, 3)
    nats[1, 2] = -4 * math.log(2)

    image = heat_map(np.full((24, 24, 3), 100, np.uint8), nats)

    side = 3 * -(-512 // 3)
    assert image.dtype == np.uint8 and image.shape == (side + 56, side, 3)
    cells = image[:side].reshape(3, side // 3, 3, side // 3, 3).mean(axis=(1, 3, 4))
    assert cells[1, 2] > 2 * np.delete(cells.ravel(), 5).max()
    assert np.ptp(np.delete(cells.ravel(), 5)) == 0


def test_heat_maps_of_one_scale_can_be_compared():
    few, many = (heat_map(IMAGE, torch.full((2, 2), -bits * math.log(2)), max_bits=8) for bits in (2, 8))
    assert (few[:512] < many[:512]).mean() > 0.3 and few[:512].mean() < many[:512].mean()
    assert np.array_equal(few[512:], many[512:])  # the scale
    assert not np.array_equal(few[512:], heat_map(IMAGE, torch.full((2, 2), -2 * math.log(2)))[512:])


def test_every_cell_has_its_number_on_it():
    plain = np.full((24, 24, 3), 200, np.uint8)

    image = label_tokens(plain, GRID)
    other = label_tokens(plain, set_token(GRID, 1, 2, 9, vocab_size=10))

    cell, margin = -(-512 // 3), token_editing.MARGIN
    assert image.shape == (3 * cell + margin, 3 * cell + margin, 3)
    rows, columns, _ = (image != other).nonzero()  # the numbers differ, and in that cell only
    assert rows.min() >= margin + cell and rows.max() < margin + 2 * cell
    assert columns.min() >= margin + 2 * cell and columns.max() < margin + 3 * cell
