"""A picture's words in the hand: set one, flip the grid, stitch two, and look at the numbers and at what surprises.

Grids are int64 (side, side), pictures uint8 (H, W, 3); nothing here knows of a model, and nothing changes its argument.
Flipping and stitching move whole words: what a word paints is not turned with it, and its neighbours colour it, so a
decoded picture shows how far the words stand on their own.
"""
from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# dark and blue where a word was expected, light and yellow where it surprises: ever lighter, and told apart when colour-blind
RAMP = ((0.05, 0.03, 0.25), (0.19, 0.16, 0.50), (0.13, 0.38, 0.55), (0.10, 0.56, 0.53), (0.38, 0.73, 0.36), (0.98, 0.90, 0.15))
BLEND, CONTRAST, MIDDLE = 0.7, 0.6, 128  # a picture's own light and dark is made faint, so that a colour stays readable
SHOWN_SIDE = 512  # pixels that a picture is enlarged to, or a little more
CELL = 40  # pixels a cell has at least, so that its number can be read
MARGIN = 24  # pixels for the numbers of rows and columns
INK, PAPER = (30, 30, 30), (255, 255, 255)


# --- words -----------------------------------------------------------------------------------------------------------


def as_grid(tokens: Tensor) -> Tensor:
    """(L,) -> (side, side), raster order; raises ValueError where L is no square."""
    side = math.isqrt(len(tokens))
    if side * side != len(tokens):
        raise ValueError(f"{len(tokens)} words form no square grid")
    return tokens.reshape(side, side)


def set_word(grid: Tensor, row: int, column: int, word: int, vocab_size: int) -> Tensor:
    """The grid with another word in one cell; rows, columns and words count from 0. Raises ValueError."""
    for name, value, count in (("row", row, grid.shape[0]), ("column", column, grid.shape[1]), ("word", word, vocab_size)):
        if not 0 <= value < count:
            raise ValueError(f"there is no {name} {value}: they run from 0 to {count - 1}")
    changed = grid.clone()
    changed[row, column] = word
    return changed


def flip(grid: Tensor) -> Tensor:
    """The grid, left for right: [[1, 2], [3, 4]] -> [[2, 1], [4, 3]]."""
    return grid.flip(1)


def stitch(left: Tensor, right: Tensor, columns: int | None = None) -> Tensor:
    """The first `columns` (default: half) of one grid, and the rest of another, each in its place. Raises ValueError."""
    if left.shape != right.shape:
        raise ValueError(f"grids of {tuple(left.shape)} and {tuple(right.shape)} words cannot be stitched; give two alike")
    columns = left.shape[1] // 2 if columns is None else columns
    if not 0 <= columns <= left.shape[1]:
        raise ValueError(f"{columns} columns cannot be taken from a grid of {left.shape[1]}; take 0 to {left.shape[1]}")
    return torch.cat([left[:, :columns], right[:, columns:]], dim=1)


def most_surprising(log_probabilities: Tensor, count: int) -> list[tuple[int, int, float]]:
    """(row, column, bits) of the cells that were expected least, worst first: (side, side) nats."""
    flat = surprise(log_probabilities).ravel()
    side = log_probabilities.shape[1]
    return [(int(cell) // side, int(cell) % side, float(flat[cell])) for cell in np.argsort(-flat, kind="stable")[:count]]


def surprise(log_probabilities: Tensor) -> np.ndarray:
    """ln p -> bits, 0 or more."""
    return np.maximum(0, -log_probabilities.double().numpy() / math.log(2))


# --- to look at ------------------------------------------------------------------------------------------------------


def numbered(picture: np.ndarray, grid: Tensor) -> np.ndarray:
    """The picture, enlarged, with the number of each word over its cell, and rows and columns counted at the edge."""
    side = len(grid)
    sheet, cell = _enlarged(picture, side)
    framed = Image.new("RGB", (sheet.width + MARGIN, sheet.height + MARGIN), PAPER)
    framed.paste(sheet, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(framed)
    for place in range(side):
        middle = MARGIN + (place + 0.5) * cell
        _write(draw, (middle, MARGIN / 2), str(place), size=13)
        _write(draw, (MARGIN / 2, middle), str(place), size=13)
    for place in range(1, side):
        edge = MARGIN + place * cell
        draw.line((edge, MARGIN, edge, framed.height), fill=(128, 128, 128))
        draw.line((MARGIN, edge, framed.width, edge), fill=(128, 128, 128))
    for row in range(side):
        for column in range(side):
            middle = (MARGIN + (column + 0.5) * cell, MARGIN + (row + 0.5) * cell)
            _write(draw, middle, str(int(grid[row, column])), size=14, fill=PAPER, stroke=INK)
    return np.array(framed)


def heat_map(picture: np.ndarray, log_probabilities: Tensor, top: float | None = None) -> np.ndarray:
    """How much each word surprises, (side, side) nats, as colour over a grey picture, with a scale in bits below.

    `top` is the number of bits at the end of the scale (default: the most there are); give one to compare pictures.
    """
    bits = surprise(log_probabilities)
    top = max(float(bits.max()), 1.0) if top is None else top
    sheet, cell = _enlarged(picture, len(bits))
    grey = MIDDLE + CONTRAST * (np.asarray(sheet.convert("L").convert("RGB"), dtype=np.float64) - MIDDLE)
    colours = np.kron(colour(bits / top), np.ones((cell, cell, 1)))
    return np.concatenate([_blend(colours, grey), _scale(sheet.width, top)])


def colour(share: np.ndarray) -> np.ndarray:
    """0 to 1 -> red, green, blue from 0 to 255: (...) -> (..., 3); what lies outside is clipped."""
    ramp = np.array(RAMP) * 255
    places = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(share, places, ramp[:, channel]) for channel in range(3)], axis=-1)


def _enlarged(picture: np.ndarray, side: int) -> tuple[Image.Image, int]:
    """(the picture so large that each of side x side cells can be read, the pixels of a cell)."""
    cell = max(CELL, -(-SHOWN_SIDE // side))
    return Image.fromarray(picture).resize((cell * side, cell * side), Image.Resampling.NEAREST), cell


def _blend(colours: np.ndarray, grey: np.ndarray | float) -> np.ndarray:
    return (BLEND * colours + (1 - BLEND) * grey).round().astype(np.uint8)


def _scale(width: int, top: float, height: int = 56) -> np.ndarray:
    """A bar from 0 to `top` bits, as on a middle grey, with its numbers below: uint8 (height, width, 3)."""
    pad, thick = 24, 14
    sheet = Image.new("RGB", (width, height), PAPER)
    bar = np.broadcast_to(colour(np.linspace(0, 1, width - 2 * pad)), (thick, width - 2 * pad, 3))
    sheet.paste(Image.fromarray(_blend(bar, MIDDLE)), (pad, 10))
    draw = ImageDraw.Draw(sheet)
    for share in (0, 0.25, 0.5, 0.75, 1):
        place = pad + share * (width - 2 * pad - 1)
        draw.line((place, 10 + thick, place, 14 + thick), fill=INK)
        _write(draw, (place, 24 + thick), f"{share * top:.1f}{' bits' if share == 0.5 else ''}", size=13)
    return np.array(sheet)


def _write(
    draw: ImageDraw.ImageDraw,
    middle: tuple[float, float],
    text: str,
    size: int,
    fill: tuple[int, int, int] = INK,
    stroke: tuple[int, int, int] | None = None,
) -> None:
    font = ImageFont.load_default(size)
    draw.text(middle, text, fill=fill, font=font, anchor="mm", stroke_width=2 if stroke else 0, stroke_fill=stroke)
