"""Part of a picture is given as words, and the rest is drawn to the prompt."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import SIDE, pictures, tiny
from thousandwords import completion, generators, images
from thousandwords.completion import (
    faded,
    given_words,
    kept_by_mask,
    read_completions,
    rows_of,
    side_of,
    top_rows,
)
from thousandwords.drawing import encode_in_parts
from thousandwords.errors import UserError

TOKENIZER = tiny("tokenizers", "dvae")
PICTURES = images.to_uint8(pictures(3))


def white_where(rows: slice, columns: slice, height: int = 40, width: int = 40) -> np.ndarray:
    """A mask, black but for a white rectangle."""
    mask = np.zeros((height, width, 3), np.uint8)
    mask[rows, columns] = 255
    return mask


# --- which cells stay ------------------------------------------------------------------------------------------------


def test_the_top_rows_stay():
    assert top_rows(4, 1).astype(int).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert top_rows(4, 3).sum() == 12


@pytest.mark.parametrize("rows", [0, -1, 4, 5])
def test_rows_that_leave_nothing_to_keep_or_nothing_to_draw_are_refused(rows):
    with pytest.raises(UserError) as caught:
        top_rows(4, rows)
    assert str(caught.value) == f"{rows} rows cannot be kept: these pictures have 4 rows of words. Keep 1 to 3"


def test_a_share_is_the_nearest_number_of_rows_that_leaves_some_to_draw():
    assert [rows_of(share, 8) for share in (0.01, 0.5, 0.55, 0.6, 0.99)] == [1, 4, 4, 5, 7]


def test_white_in_a_mask_is_what_stays():
    assert kept_by_mask(white_where(slice(20), slice(10)), 4).astype(int).tolist() == [
        [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]
    ]  # fmt: skip


def test_a_cell_stays_that_is_half_white_or_more():
    kept = kept_by_mask(white_where(slice(5), slice(20)), 4)
    assert kept[0].tolist() == [True, True, False, False]
    assert not kept_by_mask(white_where(slice(4), slice(20)) + white_where(slice(30, 40), slice(40)), 4)[0].any()


def test_a_mask_of_one_pixel_per_cell_is_taken_as_it_is():
    kept = np.random.default_rng(0).random((4, 4)) < 0.5
    assert np.array_equal(kept_by_mask(np.repeat(kept[:, :, None], 3, axis=2).astype(np.uint8) * 255, 4), kept)


def test_a_wide_mask_is_cropped_to_its_middle_as_a_wide_picture_is():
    assert kept_by_mask(white_where(slice(40), slice(30), width=80), 4).astype(int).tolist() == [[1, 0, 0, 0]] * 4


@pytest.mark.parametrize(
    ("level", "sentence"), [(255, "all of it is white, so that nothing is left to draw"), (99, "no cell of it is white enough")]
)
def test_a_mask_that_keeps_all_or_nothing_is_refused(level, sentence):
    with pytest.raises(UserError, match=f"the mask is of no use: {sentence}. Paint white what is to be kept"):
        kept_by_mask(np.full((20, 20, 3), level, np.uint8), 4)


def test_a_tokenizer_of_several_grids_is_refused():
    assert side_of((8,)) == 8
    with pytest.raises(UserError, match="form 3 grids, of 1, 2, 4 cells a side; cells can be kept of one grid only"):
        side_of((1, 2, 4))


# --- what is given ---------------------------------------------------------------------------------------------------


def test_the_words_of_the_kept_cells_are_given_and_no_others():
    words = TOKENIZER.encode(images.to_float(PICTURES[:1]))[0]

    given = given_words(TOKENIZER, PICTURES[0], top_rows(4, 2))

    assert given[:8].equal(words[:8]) and given[8:].eq(-1).all() and given.dtype == torch.int64
    assert completion.TO_DRAW == generators.TO_DRAW == -1


def test_a_picture_of_another_size_is_cropped_and_resized_as_in_training():
    wide = np.random.default_rng(0).integers(0, 256, (3 * SIDE, 5 * SIDE, 3), np.uint8)
    fitted = images.fit_square(wide, SIDE)

    assert given_words(TOKENIZER, wide, top_rows(4, 3)).equal(given_words(TOKENIZER, fitted, top_rows(4, 3)))


def test_pictures_of_any_size_become_words_a_few_at_a_time():
    mixed = [PICTURES[0], np.repeat(PICTURES[1], 2, axis=1), PICTURES[2]]
    fitted = np.stack([images.fit_square(picture, SIDE) for picture in mixed])

    assert encode_in_parts(TOKENIZER, mixed, batch_size=2).equal(TOKENIZER.encode(images.to_float(fitted)))


def test_cells_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"kept has shape \(5, 5\); this tokenizer has 4 x 4 cells"):
        given_words(TOKENIZER, PICTURES[0], top_rows(5, 2))


def test_what_does_not_stay_is_greyed_out():
    before = PICTURES[0].copy()

    shown = faded(PICTURES[0], top_rows(4, 1))

    assert np.array_equal(shown[: SIDE // 4], PICTURES[0][: SIDE // 4]) and np.array_equal(PICTURES[0], before)
    rest = shown[SIDE // 4 :]
    assert (rest == rest[:, :, :1]).all() and rest.min() > 170 and rest.std() > 1  # pale grey, and still to be made out


# --- a folder of pictures to complete --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name, caption in (("b", "A blue circle\nanother caption"), ("a", "a red star")):
        (tmp_path / f"{name}.png").write_bytes(images.encode_png(PICTURES["ab".index(name)]))
        (tmp_path / f"{name}.txt").write_text(caption)
    return tmp_path


def test_pictures_to_complete_come_with_their_first_caption_in_the_order_of_their_names(folder):
    found = list(read_completions(folder))

    assert [caption for caption, _ in found] == ["a red star", "a blue circle"]
    assert all(np.array_equal(picture, PICTURES[row]) for row, (_, picture) in enumerate(found))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("b.png", b"no picture", "b.png in .* cannot be completed: the bytes begin with b'no picture'. Mend it, or take it out"),
        ("c.png", b"no picture", "c.png in .* cannot be completed: there is no c.txt"),
        ("c.txt", b"a caption alone", "c.txt in .* cannot be completed: there is no picture beside c.txt"),
        ("a.txt", b" \n", "a.png in .* cannot be completed: there is nothing but blanks"),
    ],
)
def test_a_bad_one_among_them_is_named(folder, name, data, sentence):
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"^sampling.complete: {sentence}"):
        list(read_completions(folder))


def test_a_folder_that_is_missing_is_refused_and_one_without_pictures_has_none(tmp_path):
    with pytest.raises(UserError, match="^sampling.complete: there is no folder .*none. Make it, or set sampling.complete to"):
        list(read_completions(tmp_path / "none"))
    (tmp_path / "README.md").write_text("Pictures may lie here.")
    assert list(read_completions(tmp_path)) == []
