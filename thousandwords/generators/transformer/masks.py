"""The attention masks of arXiv 2102.12092 (figure 11), and which layer has which.

All attention code takes the masks from here: dense attention uses a whole mask, cached decoding the row of
the new token, FlexAttention the rule itself (`sees`). A sequence is a prefix (start-of-text, text,
start-of-image) under a causal mask, then the image grid in raster order. Every image position sees the whole
prefix; the kind of mask says which image positions it sees. Left out: the paper transposes the hidden states
before column attention, which gives its GPU kernels a block-shaped mask and changes no value
(attention_blocks.py and attention_flex.py do so too).
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("row", "column", "convolutional")


def layer_kinds(num_layers: int) -> list[str]:
    """The kind of every layer, first to last: layer_kinds(4) -> ["row", "column", "row", "convolutional"]."""
    return [layer_kind(number, num_layers) for number in range(1, num_layers + 1)]


def layer_kind(number: int, num_layers: int) -> str:
    """The kind of layer `number`, from 1 as in the paper; the last is always convolutional."""
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
    """Whether an image position sees the one `steps_back` before it in raster order, element by element."""
    if kind == "row":
        is_in_reach = steps_back <= side
    elif kind == "column":
        is_in_reach = steps_back % side == 0
    elif kind == "convolutional":
        is_in_reach = in_neighborhood(steps_back, side, kernel)
    else:
        raise ValueError(f"no attention mask is called {kind!r}; choose one of {', '.join(KINDS)}")
    return is_in_reach & (steps_back >= 0)


def in_neighborhood(steps_back: Tensor, side: int, kernel: int) -> Tensor:
    """True up to kernel // 2 rows above and kernel // 2 cells left or right, wrapping at the row's end."""
    reach = kernel // 2
    is_near = steps_back.abs() <= reach
    for rows_above in range(1, reach + 1):
        is_near = is_near | ((steps_back - rows_above * side).abs() <= reach)
    return is_near
