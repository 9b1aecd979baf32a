"""FlexAttention (arXiv 2412.05496) for training on a GPU: blocks of 128 x 128 that a mask leaves empty are never computed.

The rule of each kind comes from _masks.py. In raster order a column is spread over all blocks, so column layers are transposed
first (the column trick of arXiv 2102.12092, section 2.2). Under a prefix of 258 and a grid of 32 x 32, 45 of 121 blocks are left
for row and column layers, 51 for convolutional ones. Only in training: what is read without gradients goes the plain way, so that
no batch of another size has to be compiled.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from thousandwords.compiling import Compiled, tell
from thousandwords.generators._layers import Attend
from thousandwords.generators._masks import sees

if TYPE_CHECKING:  # it takes half a second to import, and only training on a GPU needs it
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # positions on the side of a block: what the kernels of torch are laid out for
LEAST_CAPABILITY = (8, 0)  # of a GPU: Ampere, from which on Triton has bfloat16


def problem(device: torch.device) -> str:
    """Why FlexAttention cannot train on a device, or ""."""
    if device.type != "cuda":
        return f"it has no gradients on {device.type}"
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"this GPU has compute capability {torch.cuda.get_device_capability(device)}, below {LEAST_CAPABILITY}"
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"


def can_run(device: torch.device, is_asked_for: bool) -> bool:
    """Whether it can; where it was asked for and cannot, a line says why."""
    found = problem(device)
    if found and is_asked_for:
        tell(f"transformer.attention is flex, but {found}; attending line by line instead")
    return not found


class Order:
    """The order in which a stream is attended to: the prefix, then the grid, row by row or column by column."""

    def __init__(self, kind: str, prefix_length: int, side: int, kernel: int) -> None:
        self.kind, self.prefix_length, self.side, self.kernel = kind, prefix_length, side, kernel
        self.is_transposed = kind == "column"

    def rule(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Whether the position at one place of this order sees that at another: what FlexAttention asks."""
        kind, prefix, side, kernel, is_transposed = self.kind, self.prefix_length, self.side, self.kernel, self.is_transposed

        def raster(place: Tensor) -> Tensor:
            return place % side * side + place // side if is_transposed else place

        def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            in_grid = (query >= prefix) & sees(kind, raster(query - prefix) - raster(key - prefix), side, kernel)
            return torch.where(key < prefix, key <= query, in_grid)

        return rule

    def ordered(self, values: Tensor) -> Tensor:
        """(B, heads, n, x) -> the same in this order; a transposed grid is filled up, with positions that nobody sees."""
        if not self.is_transposed:
            return values
        prefix, grid = values.split([self.prefix_length, values.shape[2] - self.prefix_length], dim=2)
        grid = F.pad(grid, (0, 0, 0, self.side**2 - grid.shape[2])).unflatten(2, (self.side, self.side))
        return torch.cat([prefix, grid.transpose(2, 3).flatten(2, 3)], dim=2)

    def raster(self, values: Tensor, length: int) -> Tensor:
        """`ordered` undone: transposing twice is no transposing."""
        return self.ordered(values)[:, :, :length] if self.is_transposed else values

    def blocks(self, length: int, device: torch.device) -> BlockMask:
        """Which blocks of a stream of `length` positions are empty, whole, or in between."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self.is_transposed:
            length = self.prefix_length + self.side**2
        return create_block_mask(self.rule(), None, None, length, length, device=device, BLOCK_SIZE=BLOCK)


def flexible(order: Order, length: int, device: torch.device, instead: Attend) -> Attend:
    """As `dense` under the mask of `order`, for streams of that length; `instead`, where it cannot be compiled."""
    attend = attend_in_blocks(order, order.blocks(length, device))
    return Compiled(attend, f"FlexAttention of {order.kind} layers", instead)


def attend_in_blocks(order: Order, blocks: BlockMask) -> Attend:
    """The same, uncompiled: then torch makes the table of all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        read = [order.ordered(tensor) for tensor in (queries, keys, values)]
        return order.raster(flex_attention(*read, block_mask=blocks), queries.shape[2])

    return attend
