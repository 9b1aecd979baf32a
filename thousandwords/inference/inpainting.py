"""From an image and the cells to keep to its fixed tokens; the rest is sampled (arXiv 2102.12092, figure 2c).

The paper keeps the top rows. Other cells may be kept too, but of one grid, in raster order, a kept cell does not influence
what is sampled above it. A generator with `keeps_parts` keeps cells of the finest of several grids.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from thousandwords.core.errors import InvalidInput, UserError
from thousandwords.core.special_tokens import UNKNOWN
from thousandwords.data.image_decoding import decode_image
from thousandwords.data.images import fit_square, to_float
from thousandwords.inference.batched import encode_in_batches
from thousandwords.inference.config import check_prompt
from thousandwords.ingest.sources import FolderSource

GRAY_OPACITY = 0.2  # of the image in a cell that is not kept


def grid_side(scales: tuple[int, ...], keeps_parts: bool = False) -> int:
    """The side of the one token grid of an image: (8,) -> 8; of several the finest if the generator `keeps_parts`, else
    raises UserError."""
    if len(scales) != 1 and not keeps_parts:
        raise UserError(
            f"the tokens of this image tokenizer form {len(scales)} grids, of {', '.join(map(str, scales))} cells a side; "
            "here cells can be kept of one grid only. Train an image tokenizer with one scale, or to inpaint a generator of "
            "the kind next_scale"
        )
    return scales[-1]


def top_rows(side: int, num_rows: int) -> np.ndarray:
    """The cells of the first rows: bool (side, side); raises UserError unless some are kept and some sampled."""
    if not 1 <= num_rows < side:
        raise UserError(
            f"{num_rows} rows cannot be kept: these images have {side} rows of tokens. Keep 1 to {side - 1}"
        )
    return np.repeat(np.arange(side) < num_rows, side).reshape(side, side)


def rows_to_keep(share: float, side: int) -> int:
    """The number of rows closest to a share of the grid, at least one kept and one sampled: (0.5, 8) -> 4."""
    return max(1, min(side - 1, round(share * side)))


def cells_from_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Mask uint8 (H, W, 3), white where an image is kept -> bool (side, side): cells of its middle square that are
    white on average. Raises UserError unless some are kept and some sampled."""
    square = fit_square(mask, min(mask.shape[:2]))  # cropped, not resized: a resize could ring
    is_kept = adaptive_avg_pool2d(to_float(square), side)[0].mean(dim=0).ge(0.5).numpy()
    if is_kept.any() and not is_kept.all():
        return is_kept
    all_white = "all of it is white, so that nothing is left to sample"
    reason = all_white if is_kept.any() else "no cell of it is white enough"
    raise UserError(
        f"the mask cannot be used: {reason}. Paint white what is to be kept, and black what is to be sampled"
    )


def fixed_tokens_of(tokenizer: nn.Module, image: np.ndarray, is_kept: np.ndarray) -> Tensor:
    """The tokens of the kept cells: uint8 (H, W, 3) of any size, bool (side, side) -> (L,), -1 elsewhere; of several
    grids `is_kept` is of the finest, and all tokens of the others are given."""
    side = tokenizer.scales[-1]
    if is_kept.shape != (side, side):
        raise ValueError(f"is_kept has shape {is_kept.shape}; this tokenizer has {side} x {side} cells")
    tokens = encode_in_batches(tokenizer, [image])[0]
    tokens[-side * side :][torch.from_numpy(~is_kept.ravel())] = UNKNOWN
    return tokens


def gray_out(image: np.ndarray, is_kept: np.ndarray) -> np.ndarray:
    """The image uint8 (H, W, 3) with the cells that are not kept in light gray, to show what was fixed."""
    side, (height, width) = len(is_kept), image.shape[:2]
    mask = is_kept[np.arange(height) * side // height][:, np.arange(width) * side // width, None]
    gray = image.mean(axis=2, keepdims=True) * GRAY_OPACITY + 255 * (1 - GRAY_OPACITY) * 0.9
    return np.where(mask, image, gray.round().astype(np.uint8))


def read_images_to_inpaint(folder: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """(caption, image) of each image in a folder, by name; raises UserError at the first bad one."""
    if Path(folder).is_file():
        raise UserError(
            f"sampling.inpaint is {folder}, a file, not a folder of captioned images. Set it to the folder"
        )
    if not Path(folder).is_dir():
        raise UserError(
            f"sampling.inpaint: there is no folder {folder}. Make it, or set sampling.inpaint: data/inpaint"
        )
    for record in FolderSource(folder):
        try:
            if record.problem:
                raise record.problem
            caption = check_prompt(record.captions[0], f"{record.provenance}: its caption")
            yield caption, decode_image(record.image)
        except InvalidInput as problem:
            raise UserError(
                f"sampling.inpaint: {record.key} in {folder} cannot be inpainted: {problem.detail}. Fix it, or remove it"
            ) from problem
