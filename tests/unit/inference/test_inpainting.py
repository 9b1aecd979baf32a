"""Some cells of an image become fixed tokens; the rest is sampled for the prompt."""

import numpy as np
import pytest

from tests.helpers.tiny_models import SIDE, random_images, tiny
from thousandwords.core.errors import UserError
from thousandwords.data.images import encode_png, fit_square, to_float, to_uint8
from thousandwords.inference.batched import encode_in_batches
from thousandwords.inference.inpainting import (
    cells_from_mask,
    fixed_tokens_of,
    grid_side,
    read_images_to_inpaint,
    rows_to_keep,
    top_rows,
)

TOKENIZER = tiny("image_tokenizers", "dvae")
IMAGES = to_uint8(random_images(3))


def white_where(rows: slice, columns: slice, height: int = 40, width: int = 40) -> np.ndarray:
    """A mask, black but for a white rectangle."""
    mask = np.zeros((height, width, 3), np.uint8)
    mask[rows, columns] = 255
    return mask


def test_a_share_is_the_nearest_number_of_rows_that_leaves_some_to_sample():
    assert [rows_to_keep(share, 8) for share in (0.01, 0.5, 0.55, 0.6, 0.99)] == [1, 4, 4, 5, 7]


@pytest.mark.parametrize(
    ("mask", "rows"),
    [
        (white_where(slice(20), slice(10)), [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        # half of a cell is enough, less is not
        (white_where(slice(5), slice(20)), [[1, 1, 0, 0], *[[0, 0, 0, 0]] * 3]),
        (white_where(slice(4), slice(20)) + white_where(slice(30, 40), slice(40)), [*[[0] * 4] * 3, [1] * 4]),
        # a wide mask is cropped to its middle, as a wide image is
        (white_where(slice(40), slice(30), width=80), [[1, 0, 0, 0]] * 4),
    ],
)
def test_cells_of_a_mask_that_are_half_white_or_more_are_kept(mask, rows):
    assert cells_from_mask(mask, 4).astype(int).tolist() == rows


def test_a_tokenizer_of_several_grids_is_rejected_unless_the_generator_keeps_parts():
    assert grid_side((8,)) == 8 and grid_side((1, 2, 4), keeps_parts=True) == 4
    message = "form 3 grids, of 1, 2, 4 cells a side; here cells can be kept of one grid only"
    with pytest.raises(UserError, match=message):
        grid_side((1, 2, 4))


def test_images_of_any_size_become_tokens_a_few_at_a_time():
    mixed = [IMAGES[0], np.repeat(IMAGES[1], 2, axis=1), IMAGES[2]]
    squares = np.stack([fit_square(image, SIDE) for image in mixed])

    assert encode_in_batches(TOKENIZER, mixed, batch_size=2).equal(TOKENIZER.encode(to_float(squares)))


def test_cells_of_another_grid_are_rejected():
    with pytest.raises(ValueError, match=r"is_kept has shape \(5, 5\); this tokenizer has 4 x 4 cells"):
        fixed_tokens_of(TOKENIZER, IMAGES[0], top_rows(5, 2))


@pytest.fixture
def folder(tmp_path):
    for name, caption in (("b", "A blue circle\nanother caption"), ("a", "a red star")):
        (tmp_path / f"{name}.png").write_bytes(encode_png(IMAGES["ab".index(name)]))
        (tmp_path / f"{name}.txt").write_text(caption)
    return tmp_path


def test_images_to_inpaint_come_with_their_first_caption_in_the_order_of_their_names(folder):
    pairs = list(read_images_to_inpaint(folder))

    assert [caption for caption, _ in pairs] == ["a red star", "a blue circle"]
    assert all(np.array_equal(image, IMAGES[row]) for row, (_, image) in enumerate(pairs))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("c.png", b"no image", "c.png in .* cannot be inpainted: there is no c.txt"),
        ("c.txt", b"a caption alone", "c.txt in .* cannot be inpainted: there is no image beside c.txt"),
        ("a.txt", b" \n", "a.png in .* cannot be inpainted: it is blank"),
    ],
)
def test_a_bad_one_among_them_is_named(folder, name, data, sentence):
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"^sampling.inpaint: {sentence}"):
        list(read_images_to_inpaint(folder))


def test_a_folder_without_images_has_none(tmp_path):
    (tmp_path / "README.md").write_text("Images may lie here.")
    assert list(read_images_to_inpaint(tmp_path)) == []
