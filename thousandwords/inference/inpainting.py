"""From a picture and a choice of its cells to the words that are given: the rest is drawn (arXiv 2102.12092, figure 2c).

The paper keeps the top rows. Any other cells may be kept as well, but words are drawn in raster order, each seeing only
those before it: cells kept further down are put in where they belong and have no say in what is drawn above them.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from thousandwords.drawing import check_prompt, encode_in_parts
from thousandwords.errors import UserError
from thousandwords.images import Refused, decode_image, fit_square, to_float
from thousandwords.sources import FolderSource

TO_DRAW = -1  # as generators take it: here a word is to be drawn
FADED = 0.2  # what is left to see of a cell that is not kept


def side_of(scales: tuple[int, ...]) -> int:
    """Rows, and columns, of the one grid that a picture's words form: (8,) -> 8; raises UserError for several grids."""
    if len(scales) != 1:
        raise UserError(
            f"the words of this image tokenizer form {len(scales)} grids, of {', '.join(map(str, scales))} cells a side; "
            "cells can be kept of one grid only. Train an image tokenizer with one scale"
        )
    return scales[0]


def top_rows(side: int, rows: int) -> np.ndarray:
    """The cells of the first rows, kept: bool (side, side); raises UserError where nothing or everything would be kept."""
    if not 1 <= rows < side:
        raise UserError(f"{rows} rows cannot be kept: these pictures have {side} rows of words. Keep 1 to {side - 1}")
    return np.repeat(np.arange(side) < rows, side).reshape(side, side)


def rows_of(share: float, side: int) -> int:
    """The rows that come closest to a share of the grid, with at least one kept and one drawn: (0.5, 8) -> 4."""
    return max(1, min(side - 1, round(share * side)))


def kept_by_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3), white where a picture is kept -> bool (side, side): cells that are white on average.

    A mask is cropped to its middle square as a picture is. Raises UserError where nothing or everything would be kept.
    """
    square = fit_square(mask, min(mask.shape[:2]))  # cropped, and not resized: a resize could ring
    kept = adaptive_avg_pool2d(to_float(square), side)[0].mean(dim=0).ge(0.5).numpy()
    if kept.all() or not kept.any():
        found = "all of it is white, so that nothing is left to draw" if kept.all() else "no cell of it is white enough"
        raise UserError(f"the mask is of no use: {found}. Paint white what is to be kept, and black what is to be drawn")
    return kept


def given_words(tokenizer: nn.Module, picture: np.ndarray, kept: np.ndarray) -> Tensor:
    """The words of the kept cells: uint8 (H, W, 3) of any size, bool (side, side) -> (L,) int64, -1 elsewhere.

    The picture is cropped and resized as those are that the models were trained on.
    """
    side = side_of(tokenizer.scales)
    if kept.shape != (side, side):
        raise ValueError(f"kept has shape {kept.shape}; this tokenizer has {side} x {side} cells")
    return encode_in_parts(tokenizer, [picture])[0].where(torch.from_numpy(kept.ravel()), TO_DRAW)


def faded(picture: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with the cells that are not kept greyed out, so that one sees what was given."""
    side, (height, width) = len(kept), picture.shape[:2]
    is_kept = kept[np.arange(height) * side // height][:, np.arange(width) * side // width, None]
    grey = picture.mean(axis=2, keepdims=True) * FADED + 255 * (1 - FADED) * 0.9
    return np.where(is_kept, picture, grey.round().astype(np.uint8))


def read_completions(folder: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """(caption, picture) of each picture in a folder, in the order of their names; raises UserError at the first bad one.

    Nothing is left out in silence: there are few of them, and each was put there to be completed. No picture: none.
    """
    if not Path(folder).is_dir():
        raise UserError(f"sampling.complete: there is no folder {folder}. Make it, or set sampling.complete to null")
    for raw in FolderSource(folder):
        try:
            if raw.problem:
                raise raw.problem
            yield check_prompt(raw.captions[0], f"{raw.provenance}: its caption"), decode_image(raw.image)
        except Refused as problem:
            raise UserError(
                f"sampling.complete: {raw.key} in {folder} cannot be completed: {problem.detail}. Mend it, or take it out"
            ) from problem
