"""How the layers attend over a whole sequence: under the whole mask, or by FlexAttention, with equal values.

FlexAttention (arXiv 2412.05496) is for training on a GPU: fully masked blocks are never computed; of the paper's
121 blocks 45 remain in row and column layers, 51 in convolutional ones. It transposes the grid of column layers,
so that a column is a line (the column trick of arXiv 2102.12092, section 2.2).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators.transformer.kv_cache import CacheLayout
from thousandwords.generators.transformer.masks import attention_masks, sees
from thousandwords.nn.compile import Compiled, log_once
from thousandwords.nn.grid_positions import rotate
from thousandwords.nn.transformer_layers import Attend, dense_attention

if TYPE_CHECKING:  # takes half a second to import, and only training on a GPU needs it
    from torch.nn.attention.flex_attention import BlockMask

LARGE_SIDE = 16  # cells; below it FlexAttention skips few blocks
BLOCK = 128  # positions on the side of a block of FlexAttention, the size torch's kernels are made for
MIN_CAPABILITY = (8, 0)  # of a GPU: Ampere, the first with bfloat16 in Triton


class AttentionBackends(nn.Module):
    """The masks of all kinds of layers, their attention, and what was computed or compiled for it."""

    def __init__(self, setting: str, prefix_length: int, scales: Sequence[int], kernel: int) -> None:
        """`setting` is the config's `attention`: auto, dense or flex."""
        super().__init__()
        self.setting, self.prefix_length, self.kernel = setting, prefix_length, kernel
        self.image_length = sum(side * side for side in scales)
        self.side = max(scales)
        for kind, mask in attention_masks(prefix_length, scales, kernel).items():
            self.register_buffer(f"{kind}_mask", mask, persistent=False)
        self.flex: dict[tuple[str, int, torch.device], Attend] = {}
        self.cache_layouts: dict[tuple[str, torch.device], CacheLayout] = {}

    def mask(self, kind: str, length: int | None = None) -> Tensor:
        """The mask of one kind of layer over the first `length` positions: (length, length)."""
        return self.get_buffer(f"{kind}_mask")[:length, :length]

    def choose(self, kind: str, length: int) -> Attend:
        """The attention over the first `length` positions in layers of one kind."""
        mask = self.mask(kind, length)
        if not self.uses_flex(mask.device):
            return dense_attention(mask)
        key = (kind, length, mask.device)
        if key not in self.flex:
            order = FlexOrder(kind, self.prefix_length, self.side, self.kernel)
            attend = flex_attention(order, order.block_mask(length, mask.device))
            self.flex[key] = Compiled(attend, f"FlexAttention of {kind} layers", dense_attention(mask))
        return self.flex[key]

    def uses_flex(self, device: torch.device) -> bool:
        """Whether a pass there attends by FlexAttention: in training only, so that no other size is compiled."""
        is_requested = self.setting == "flex"
        is_candidate = is_requested or (self.setting == "auto" and self.image_length >= LARGE_SIDE**2)
        if device.type == "meta" or not torch.is_grad_enabled() or not is_candidate:
            return False
        reason = why_flex_is_unsupported(device)
        if reason and is_requested:
            log_once(f"transformer.attention is flex, but {reason}; attending under the whole mask instead")
        return not reason

    def cache_layout(self, kind: str) -> CacheLayout:
        """Where layers of one kind cache image positions, computed from their mask on first use."""
        mask = self.mask(kind)
        key = (kind, mask.device)
        if key not in self.cache_layouts:
            image_mask = mask[self.prefix_length :, self.prefix_length :]
            self.cache_layouts[key] = CacheLayout(image_mask, self.side, kind == "column")
        return self.cache_layouts[key]


def rotary(attend: Attend, angles: Tensor | None) -> Attend:
    """`attend` with queries and keys (B, heads, n, x) turned by angles (n, x / 2); None: as they are."""
    if angles is None:
        return attend

    def attend_rotated(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(rotate(queries, angles), rotate(keys, angles), values)

    return attend_rotated


def why_flex_is_unsupported(device: torch.device) -> str:
    """Why FlexAttention cannot train on a device, or ""."""
    if device.type != "cuda":
        return f"it has no gradients on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"this GPU has compute capability {capability}, below {MIN_CAPABILITY}"
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"


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
            steps_back = raster(query - prefix) - raster(key - prefix)
            in_grid = (query >= prefix) & sees(kind, steps_back, side, kernel)
            return torch.where(key < prefix, key <= query, in_grid)

        return mask_mod

    def from_raster(self, values: Tensor) -> Tensor:
        """Put (B, heads, n, x) in this order, padded with positions that no query sees; twice: undone."""
        if not self.is_transposed:
            return values
        prefix, grid = values.split([self.prefix_length, values.shape[2] - self.prefix_length], dim=2)
        grid = F.pad(grid, (0, 0, 0, self.side**2 - grid.shape[2])).unflatten(2, (self.side, self.side))
        return torch.cat([prefix, grid.transpose(2, 3).flatten(2, 3)], dim=2)

    def block_mask(self, length: int, device: torch.device) -> BlockMask:
        """Which blocks of a sequence of `length` positions are empty, full or partly masked."""
        from torch.nn.attention.flex_attention import create_block_mask

        if self.is_transposed:
            length = self.prefix_length + self.side**2
        return create_block_mask(self.mask_mod(), None, None, length, length, device=device, BLOCK_SIZE=BLOCK)


def flex_attention(order: FlexOrder, block_mask: BlockMask) -> Attend:
    """As `dense_attention` under the mask of `order`; uncompiled, torch computes the table of all scores."""
    from torch.nn.attention.flex_attention import flex_attention as attention

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ordered = [order.from_raster(tensor) for tensor in (queries, keys, values)]
        attended = attention(*ordered, block_mask=block_mask)
        return order.from_raster(attended)[:, :, : queries.shape[2]] if order.is_transposed else attended

    return attend
