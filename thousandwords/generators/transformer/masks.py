"""Who may look at whom: the attention masks of arXiv 2102.12092 (figure 11) and which layer gets which.

The one source of truth for every path: the dense path uses a whole mask, the cached path the row of the new
token, FlexAttention the rule itself (`sees`). A stream is a prefix (start-of-text, text, start-of-image), read
causally, then the image grid in raster order. Every image position sees the whole prefix; among image positions
the kind decides. Left out: the paper's transposition of the image states before column attention, which makes
that mask block-shaped for its GPU kernels and changes no value (_blocked.py and _flex.py have it).
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("row", "column", "convolutional")


def layer_kinds(num_layers: int) -> list[str]:
    """The kind of every layer, first to last: layer_kinds(4) -> ["row", "column", "row", "convolutional"].

    The last layer is asked first: it is convolutional whatever its number.
    """
    return [layer_kind(number, num_layers) for number in range(1, num_layers + 1)]


def layer_kind(number: int, num_layers: int) -> str:
    """The kind of layer `number`, counted from 1 as in the paper."""
    if number == num_layers:
        return "convolutional"
    return "column" if (number - 2) % 4 == 0 else "row"


def attention_mask(kind: str, prefix_length: int, side: int, kernel: int) -> Tensor:
    """True where a query (row) sees a key (column): (S, S), S = prefix_length + side * side."""
    length = prefix_length + side * side
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[prefix_length:, prefix_length:] = image_mask(kind, side, kernel)
    return mask


def image_mask(kind: str, side: int, kernel: int) -> Tensor:
    """The image-to-image part: (side * side, side * side)."""
    position = torch.arange(side * side)
    return sees(kind, position[:, None] - position[None, :], side, kernel)


def sees(kind: str, steps_back: Tensor, side: int, kernel: int) -> Tensor:
    """Whether an image position sees another so many steps behind it in raster order, element by element."""
    if kind == "row":
        seen = steps_back <= side
    elif kind == "column":
        seen = steps_back % side == 0
    elif kind == "convolutional":
        seen = in_neighbourhood(steps_back, side, kernel)
    else:
        raise ValueError(f"no attention mask is called {kind!r}; choose one of {', '.join(KINDS)}")
    return seen & (steps_back >= 0)


def in_neighbourhood(steps_back: Tensor, side: int, kernel: int) -> Tensor:
    """True within kernel // 2 rows above and kernel // 2 cells to either side, wrapping over the line's end."""
    reach = kernel // 2
    seen = steps_back.abs() <= reach
    for rows_above in range(1, reach + 1):
        seen = seen | ((steps_back - rows_above * side).abs() <= reach)
    return seen
