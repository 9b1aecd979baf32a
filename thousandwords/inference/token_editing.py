"""Edit and show an image's token grid: set a token, flip, stitch two, label tokens, map their surprisal.

Grids are int64 (side, side), images uint8 (H, W, 3). No argument is changed. Flipping and stitching move whole
tokens: what a token decodes to is not mirrored, and depends on its neighbors.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# from dark blue (expected) to light yellow (surprising): ever lighter, so readable without color vision
RED, GREEN, BLUE = (
    (0.05, 0.19, 0.13, 0.10, 0.38, 0.98),
    (0.03, 0.16, 0.38, 0.56, 0.73, 0.90),
    (0.25, 0.50, 0.55, 0.53, 0.36, 0.15),
)
OPACITY, CONTRAST, MID_GRAY = 0.7, 0.6, 128  # little contrast under the colors, so that they stay readable
MIN_SIDE = 512  # pixels of an enlarged image
MIN_CELL = 40  # pixels of a cell, so that its number can be read
MARGIN = 24  # pixels for the numbers of rows and columns
INK, PAPER = (30, 30, 30), (255, 255, 255)
OUTLINED = {"fill": PAPER, "stroke_width": 2, "stroke_fill": INK}


def as_grid(tokens: Tensor) -> Tensor:
    """(L,) -> (side, side), raster order; raises ValueError where L is not a square."""
    side = math.isqrt(len(tokens))
    if side * side != len(tokens):
        raise ValueError(f"{len(tokens)} tokens do not form a square grid")
    return tokens.reshape(side, side)


def set_token(grid: Tensor, row: int, column: int, token: int, vocab_size: int) -> Tensor:
    """The grid with another token in one cell; rows, columns and tokens count from 0. Raises ValueError."""
    counts = {"row": (row, len(grid)), "column": (column, grid.shape[1]), "token": (token, vocab_size)}
    for name, (value, count) in counts.items():
        if not 0 <= value < count:
            raise ValueError(f"there is no {name} {value}: they run from 0 to {count - 1}")
    edited = grid.clone()
    edited[row, column] = token
    return edited


def flip(grid: Tensor) -> Tensor:
    """The grid mirrored left to right: [[1, 2], [3, 4]] -> [[2, 1], [4, 3]]."""
    return grid.flip(1)


def stitch(left: Tensor, right: Tensor, columns: int | None = None) -> Tensor:
    """The first `columns` (default: half) of one grid, the other columns of another. Raises ValueError."""
    if left.shape != right.shape:
        raise ValueError(
            f"grids of {tuple(left.shape)} and {tuple(right.shape)} tokens cannot be stitched; give two of one shape"
        )
    columns = left.shape[1] // 2 if columns is None else columns
    if not 0 <= columns <= left.shape[1]:
        raise ValueError(
            f"{columns} columns cannot be taken from a grid of {left.shape[1]}; take 0 to {left.shape[1]}"
        )
    return torch.cat([left[:, :columns], right[:, columns:]], dim=1)


def most_surprising_cells(log_probabilities: Tensor, count: int) -> list[tuple[int, int, float]]:
    """(row, column, bits) of the `count` least likely tokens, worst first: (side, side) nats."""
    bits = surprisal(log_probabilities)
    worst = np.argsort(-bits, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(worst, bits.shape)
    return list(zip(rows.tolist(), columns.tolist(), bits[rows, columns].tolist(), strict=True))


def surprisal(log_probabilities: Tensor) -> np.ndarray:
    """ln p -> bits, 0 or more."""
    return np.maximum(0, -log_probabilities.double().numpy() / math.log(2))


def label_tokens(image: np.ndarray, grid: Tensor) -> np.ndarray:
    """The image, enlarged, with each token's number over its cell, and row and column numbers at the edge."""
    side = len(grid)
    enlarged, cell = _enlarge(image, side)
    framed = Image.new("RGB", (enlarged.width + MARGIN, enlarged.height + MARGIN), PAPER)
    framed.paste(enlarged, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(framed)
    for index in range(side):
        center = MARGIN + (index + 0.5) * cell
        _write(draw, (center, MARGIN / 2), str(index), size=13)
        _write(draw, (MARGIN / 2, center), str(index), size=13)
    for index in range(1, side):
        edge = MARGIN + index * cell
        draw.line((edge, MARGIN, edge, framed.height), fill=(128, 128, 128))
        draw.line((MARGIN, edge, framed.width, edge), fill=(128, 128, 128))
    for row in range(side):
        for column in range(side):
            center = (MARGIN + (column + 0.5) * cell, MARGIN + (row + 0.5) * cell)
            _write(draw, center, str(int(grid[row, column])), size=14, **OUTLINED)
    return np.array(framed)


def heat_map(image: np.ndarray, log_probabilities: Tensor, max_bits: float | None = None) -> np.ndarray:
    """The surprisal of each token, (side, side) nats, as color over a gray image, with a scale to `max_bits`."""
    bits = surprisal(log_probabilities)
    max_bits = max(float(bits.max()), 1.0) if max_bits is None else max_bits
    enlarged, cell = _enlarge(image, len(bits))
    pixels = np.asarray(enlarged.convert("L").convert("RGB"), dtype=np.float64)
    gray = MID_GRAY + CONTRAST * (pixels - MID_GRAY)
    colors = np.kron(color(bits / max_bits), np.ones((cell, cell, 1)))
    return np.concatenate([_blend(colors, gray), _scale(enlarged.width, max_bits)])


def color(values: np.ndarray) -> np.ndarray:
    """0 to 1 -> red, green, blue from 0 to 255: (...) -> (..., 3); values outside are clipped."""
    stops = np.linspace(0, 1, len(RED))
    ramps = (np.array(ramp) * 255 for ramp in (RED, GREEN, BLUE))
    return np.stack([np.interp(values, stops, ramp) for ramp in ramps], axis=-1)


def _enlarge(image: np.ndarray, side: int) -> tuple[Image.Image, int]:
    """(the image so large that each of side x side cells can be read, the pixels of a cell)."""
    cell = max(MIN_CELL, -(-MIN_SIDE // side))
    return Image.fromarray(image).resize((cell * side, cell * side), Image.Resampling.NEAREST), cell


def _blend(colors: np.ndarray, gray: np.ndarray | float) -> np.ndarray:
    return (OPACITY * colors + (1 - OPACITY) * gray).round().astype(np.uint8)


def _scale(width: int, max_bits: float, height: int = 56) -> np.ndarray:
    """A color bar from 0 to `max_bits` over middle gray, with its numbers below: uint8 (height, width, 3)."""
    pad, thickness = 24, 14
    canvas = Image.new("RGB", (width, height), PAPER)
    bar = np.broadcast_to(color(np.linspace(0, 1, width - 2 * pad)), (thickness, width - 2 * pad, 3))
    canvas.paste(Image.fromarray(_blend(bar, MID_GRAY)), (pad, 10))
    draw = ImageDraw.Draw(canvas)
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = pad + share * (width - 2 * pad - 1)
        draw.line((x, 10 + thickness, x, 14 + thickness), fill=INK)
        _write(draw, (x, 24 + thickness), f"{share * max_bits:.1f}{' bits' if share == 0.5 else ''}", size=13)
    return np.array(canvas)


def _write(
    draw: ImageDraw.ImageDraw, center: tuple[float, float], text: str, size: int, **colors: object
) -> None:
    draw.text(center, text, font=ImageFont.load_default(size), anchor="mm", **{"fill": INK, **colors})
