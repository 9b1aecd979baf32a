"""The attention masks of arXiv 2102.12092 (figure 11), and which layer has which; all attention code uses these.

A sequence is a prefix (start-of-text, text, start-of-image) under a causal mask, then the image grid in
raster order. Every image position sees the whole prefix; the kind says which image positions it sees. Left
out: the paper transposes the hidden states before column attention, which changes no value (attention.py).
The paper has one grid, in raster order. Of several, one after the other, and in random orders (RAR, arXiv 2411.00776)
a position sees all positions before it: kind "causal".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("row", "column", "convolutional")  # of one grid in raster order


def layer_kinds(num_layers: int, is_causal: bool = False) -> list[str]:
    """The kind of every layer, first to last: layer_kinds(4) -> ["row", "column", "row", "convolutional"]."""
    if is_causal:
        return ["causal"] * num_layers
    kinds = ["column" if number % 4 == 2 else "row" for number in range(1, num_layers)]
    return [*kinds, "convolutional"]


def attention_mask(kind: str, prefix_length: int, side: int, kernel: int) -> Tensor:
    """True where a query (row) sees a key (column): (S, S), S = prefix_length + side * side."""
    length = prefix_length + side * side
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    position = torch.arange(side * side)
    image_mask = sees(kind, position[:, None] - position[None, :], side, kernel)
    mask[prefix_length:, prefix_length:] = image_mask
    return mask


def attention_masks(prefix_length: int, scales: Sequence[int], kernel: int) -> dict[str, Tensor]:
    """The mask of each kind that layers can have with these grids: (S, S)."""
    length = prefix_length + sum(side * side for side in scales)
    causal = {"causal": torch.ones(length, length, dtype=torch.bool).tril()}
    if len(scales) > 1:
        return causal
    return causal | {kind: attention_mask(kind, prefix_length, scales[0], kernel) for kind in KINDS}


def sees(kind: str, steps_back: Tensor, side: int, kernel: int) -> Tensor:
    """Whether an image position sees the one `steps_back` before it in raster order, element by element.

    Convolutional: up to kernel // 2 rows above and cells left or right, wrapping at the row's end.
    """
    if kind == "row":
        is_in_reach = steps_back <= side
    elif kind == "column":
        is_in_reach = steps_back % side == 0
    elif kind == "convolutional":
        reach = kernel // 2
        is_in_reach = steps_back.abs() <= reach
        for rows_above in range(1, reach + 1):
            is_in_reach = is_in_reach | ((steps_back - rows_above * side).abs() <= reach)
    elif kind == "causal":
        return steps_back >= 0
    else:
        raise ValueError(f"no attention mask is called {kind!r}; choose one of {', '.join(KINDS)}")
    return is_in_reach & (steps_back >= 0)
