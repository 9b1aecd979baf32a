"""Where the cells of several grids lie: rows and columns in the finest grid, and rotary positions in two dimensions."""

from collections.abc import Sequence

import torch
from torch import Tensor

ROTARY_BASE = (
    10_000.0  # the slowest angle turns so many times slower than the fastest (RoFormer, arXiv 2104.09864)
)


def cells_of(scales: Sequence[int]) -> Tensor:
    """(row, column, number of the grid) of each position: (L, 3) int64.

    Cells of a coarse grid have the row and column of their middle in the finest: (1, 2) -> 1, 1 and 0 to 1, 0 to 1. So
    what is learned about a place holds in every grid, and a fine grid's training serves the coarse ones.
    """
    grids = []
    for scale, side in enumerate(scales):
        middle = (2 * torch.arange(side) + 1) * max(scales) // (2 * side)
        grids.append(torch.cartesian_prod(middle, middle, torch.tensor([scale])))
    return torch.cat(grids)


def rotary_angles(scales: Sequence[int], head_width: int, extent: float) -> Tensor:
    """The angles by which each position turns pairs of a head's channels: (L, head_width / 2).

    The first half follows from the row, the second from the column. Every grid is stretched to [0, extent], so that a
    place of the image has the same angles in all of them (STAR, arXiv 2406.10797).
    """
    count = head_width // 4
    frequencies = ROTARY_BASE ** (-torch.arange(count) / count)
    grids = []
    for side in scales:
        middle = (torch.arange(side) + 0.5) * (extent / side)
        grids.append(torch.cartesian_prod(middle, middle))
    return (torch.cat(grids)[..., None] * frequencies).flatten(1)


def rotate(vectors: Tensor, angles: Tensor) -> Tensor:
    """Vectors (..., n, x) with channel i and channel i + x / 2 turned by an angle of (n, x / 2): the product of two
    rotated vectors depends on the difference of their positions. The dtype stays."""
    first, second = vectors.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    rotated = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return rotated.to(vectors.dtype)
