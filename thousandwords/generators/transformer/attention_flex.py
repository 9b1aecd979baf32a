"""FlexAttention (arXiv 2412.05496) for training on a GPU: fully masked blocks are never computed.

The rule of each kind of mask comes from masks.py. In raster order a column is spread over all blocks, so
column layers are transposed first (the column trick of arXiv 2102.12092, section 2.2). With a prefix of 258
and a grid of 32 x 32, 45 of 121 blocks are computed in row and column layers, 51 in convolutional ones. Only
in training: passes without gradients use dense or blocked attention, so that no other batch size has to be
compiled.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from thousandwords.generators.transformer.masks import sees
from thousandwords.nn.compile import Compiled, log_once
from thousandwords.nn.transformer_layers import Attend

if TYPE_CHECKING:  # takes half a second to import, and only training on a GPU needs it
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # positions on the side of a block, the size torch's kernels are made for
MIN_CAPABILITY = (8, 0)  # of a GPU: Ampere, the first with bfloat16 in Triton


def why_unsupported(device: torch.device) -> str:
    """Why FlexAttention cannot train on a device, or ""."""
    if device.type != "cuda":
        return f"it has no gradients on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"this GPU has compute capability {capability}, below {MIN_CAPABILITY}"
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"


def is_supported(device: torch.device, is_requested: bool) -> bool:
    """Whether FlexAttention can train on a device; where it was requested and cannot, one line says why."""
    reason = why_unsupported(device)
    if reason and is_requested:
        log_once(f"transformer.attention is flex, but {reason}; attending line by line instead")
    return not reason


class FlexOrder:
    """The order of positions for FlexAttention: the prefix, then the grid, row by row or column by column."""

    def __init__(self, kind: str, prefix_length: int, side: int, kernel: int) -> None:
        self.kind, self.prefix_length, self.side, self.kernel = kind, prefix_length, side, kernel
        self.is_transposed = kind == "column"

    def mask_mod(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The function FlexAttention calls: whether a query position of this order sees a key position."""
        kind, prefix, side, kernel = self.kind, self.prefix_length, self.side, self.kernel
        is_transposed = self.is_transposed

        def raster(position: Tensor) -> Tensor:
            return position % side * side + position // side if is_transposed else position

        def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            in_grid = (query >= prefix) & sees(
                kind, raster(query - prefix) - raster(key - prefix), side, kernel
            )
            return torch.where(key < prefix, key <= query, in_grid)

        return mask_mod

    def from_raster(self, values: Tensor) -> Tensor:
        """Put (B, heads, n, x) in this order; a transposed grid is padded with positions that no query sees."""
        if not self.is_transposed:
            return values
        prefix, grid = values.split([self.prefix_length, values.shape[2] - self.prefix_length], dim=2)
        grid = F.pad(grid, (0, 0, 0, self.side**2 - grid.shape[2])).unflatten(2, (self.side, self.side))
        return torch.cat([prefix, grid.transpose(2, 3).flatten(2, 3)], dim=2)

    def to_raster(self, values: Tensor, length: int) -> Tensor:
        """Undo `from_raster`: transposing twice changes nothing."""
        return self.from_raster(values)[:, :, :length] if self.is_transposed else values

    def block_mask(self, length: int, device: torch.device) -> BlockMask:
        """Which blocks of a sequence of `length` positions are empty, full or partly masked."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self.is_transposed:
            length = self.prefix_length + self.side**2
        return create_block_mask(self.mask_mod(), None, None, length, length, device=device, BLOCK_SIZE=BLOCK)


def compiled_flex_attention(order: FlexOrder, length: int, device: torch.device, fallback: Attend) -> Attend:
    """As `dense_attention` under the mask of `order`; `fallback` where it cannot be compiled."""
    attend = uncompiled_flex_attention(order, order.block_mask(length, device))
    return Compiled(attend, f"FlexAttention of {order.kind} layers", fallback)


def uncompiled_flex_attention(order: FlexOrder, block_mask: BlockMask) -> Attend:
    """The same, uncompiled: torch then computes the table of all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        qkv = [order.from_raster(tensor) for tensor in (queries, keys, values)]
        return order.to_raster(flex_attention(*qkv, block_mask=block_mask), queries.shape[2])

    return attend
