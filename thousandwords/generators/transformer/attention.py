"""How the layers attend over a whole sequence: dense, line by line or by FlexAttention, with equal values.

Line by line ("blocked"): under a whole mask a query of a 32 x 32 grid meets 1,282 keys, of which a row layer
uses about 290; here each line of the grid meets the prefix and the few lines in its reach. FlexAttention
(arXiv 2412.05496), for training on a GPU: fully masked blocks are never computed; 45 of 121 remain in row and
column layers, 51 in convolutional ones. Both transpose the grid of column layers, so that a column is a line
(the column trick of arXiv 2102.12092, section 2.2).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators.transformer.kv_cache import CacheLayout
from thousandwords.generators.transformer.masks import KINDS, attention_mask, sees
from thousandwords.nn.compile import Compiled, log_once
from thousandwords.nn.transformer_layers import Attend, dense_attention

if TYPE_CHECKING:  # takes half a second to import, and only training on a GPU needs it
    from torch.nn.attention.flex_attention import BlockMask

LARGE_SIDE = 16  # cells; below it dense attention costs less than cutting the sequence into lines
MIN_GAIN = 2.5  # times fewer keys, below which blocked attention costs more than it saves (measured on a CPU)
BLOCK = 128  # positions on the side of a block of FlexAttention, the size torch's kernels are made for
MIN_CAPABILITY = (8, 0)  # of a GPU: Ampere, the first with bfloat16 in Triton


class AttentionBackends(nn.Module):
    """The masks of all kinds of layers, their attention, and what was computed or compiled for it."""

    def __init__(self, setting: str, prefix_length: int, side: int, kernel: int) -> None:
        """`setting` is the config's `attention`: auto, dense, blocked or flex."""
        super().__init__()
        self.setting, self.prefix_length, self.side, self.kernel = setting, prefix_length, side, kernel
        for kind in KINDS:
            mask = attention_mask(kind, prefix_length, side, kernel)
            self.register_buffer(f"{kind}_mask", mask, persistent=False)
        self.lines: dict[tuple[str, torch.device], Lines] = {}
        self.flex: dict[tuple[str, int, torch.device], Attend] = {}
        self.cache_layouts: dict[tuple[str, torch.device], CacheLayout] = {}

    def mask(self, kind: str, length: int | None = None) -> Tensor:
        """The mask of one kind of layer over the first `length` positions: (length, length)."""
        return self.get_buffer(f"{kind}_mask")[:length, :length]

    def choose(self, kind: str, length: int) -> Attend:
        """The attention over the first `length` positions in layers of one kind."""
        mask = self.mask(kind)
        if not self.uses_flex(mask.device):
            return self._dense_or_blocked(kind, mask, length)
        key = (kind, length, mask.device)
        if key not in self.flex:
            order = FlexOrder(kind, self.prefix_length, self.side, self.kernel)
            attend = flex_attention(order, order.block_mask(length, mask.device))
            fallback = self._dense_or_blocked(kind, mask, length)
            self.flex[key] = Compiled(attend, f"FlexAttention of {kind} layers", fallback)
        return self.flex[key]

    def uses_flex(self, device: torch.device) -> bool:
        """Whether a pass there attends by FlexAttention: in training only, so that no other size is compiled."""
        is_requested = self.setting == "flex"
        is_candidate = is_requested or (self.setting == "auto" and self.side >= LARGE_SIDE)
        if device.type == "meta" or not torch.is_grad_enabled() or not is_candidate:
            return False
        reason = why_flex_is_unsupported(device)
        if reason and is_requested:
            log_once(f"transformer.attention is flex, but {reason}; attending line by line instead")
        return not reason

    def _dense_or_blocked(self, kind: str, mask: Tensor, length: int) -> Attend:
        is_requested, key = self.setting == "blocked", (kind, mask.device)
        is_small = not is_requested and (self.side < LARGE_SIDE or mask.device.type == "cuda")
        if not (self.setting == "dense" or is_small or mask.is_meta):  # a meta mask has no values
            if key not in self.lines:
                self.lines[key] = Lines(mask, self.prefix_length, self.side, kind == "column")
            if is_requested or self.lines[key].num_keys * MIN_GAIN <= len(mask):
                return blocked_attention(self.lines[key])
        return dense_attention(mask[:length, :length])

    def cache_layout(self, kind: str) -> CacheLayout:
        """Where layers of one kind cache image positions, computed from their mask on first use."""
        mask = self.mask(kind)
        key = (kind, mask.device)
        if key not in self.cache_layouts:
            image_mask = mask[self.prefix_length :, self.prefix_length :]
            self.cache_layouts[key] = CacheLayout(image_mask, self.side, kind == "column")
        return self.cache_layouts[key]


# --- line by line


class Lines:
    """The lines of one kind of mask: their order, how many lines back they reach, and their masks."""

    def __init__(self, mask: Tensor, prefix_length: int, side: int, is_transposed: bool):
        self.prefix_length, self.side, self.is_transposed = prefix_length, side, is_transposed
        image = mask[prefix_length:, prefix_length:]
        order = self.by_line(torch.arange(side * side, device=mask.device).view(1, 1, -1, 1)).flatten()
        blocks = image[order][:, order].view(side, side, side, side)  # query line, query, key line, key
        query_line, key_line = blocks.any(dim=3).any(dim=1).nonzero().T
        self.reach = int((query_line - key_line).max())
        padded = F.pad(blocks, (0, 0, self.reach, 0))  # lines before the first are seen by no position
        windows = [padded[line, :, line : line + self.reach + 1].flatten(1) for line in range(side)]
        self.window_masks = torch.stack(windows)  # (line, query, (reach + 1) * side)
        self.prefix_mask = mask[:prefix_length, :prefix_length]

    @property
    def num_keys(self) -> int:
        """How many keys an image position is compared with."""
        return self.prefix_length + (self.reach + 1) * self.side

    def by_line(self, values: Tensor) -> Tensor:
        """Order by line: (B, heads, side * side, x) -> the same shape. Twice: the raster order again."""
        if not self.is_transposed:
            return values
        return values.unflatten(2, (self.side, self.side)).transpose(2, 3).flatten(2, 3)

    def windows(self, values: Tensor) -> Tensor:
        """Each line with those in its reach: (B, heads, side², x) -> (B, heads, side, (reach + 1) * side, x)."""
        lines = F.pad(self.by_line(values).unflatten(2, (self.side, self.side)), (0, 0, 0, 0, self.reach, 0))
        return lines.unfold(2, self.reach + 1, 1).permute(0, 1, 2, 5, 3, 4).flatten(3, 4)


def blocked_attention(lines: Lines) -> Attend:
    """As `dense_attention` under the mask of `lines`, for a sequence that may lack its last positions."""
    prefix, side = lines.prefix_length, lines.side

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        length = queries.shape[2]
        parts = [tensor.split([prefix, length - prefix], dim=2) for tensor in (queries, keys, values)]
        text = dense_attention(lines.prefix_mask)(*(part[0] for part in parts))
        grid = [F.pad(part[1], (0, 0, 0, side * side + prefix - length)) for part in parts]
        image = _attend_image(lines, grid, parts[1][0], parts[2][0])
        return torch.cat([text, image[:, :, : length - prefix]], dim=2)

    return attend


def _attend_image(lines: Lines, grid: list[Tensor], prefix_keys: Tensor, prefix_values: Tensor) -> Tensor:
    """One softmax over the prefix and the lines in reach per image position: (B, heads, side * side, x)."""
    side, prefix = lines.side, lines.prefix_length
    queries = lines.by_line(grid[0]) * grid[0].shape[-1] ** -0.5
    to_prefix = (queries @ prefix_keys.transpose(2, 3)).unflatten(2, (side, side))
    to_lines = queries.unflatten(2, (side, side)) @ lines.windows(grid[1]).transpose(3, 4)
    to_lines = to_lines.masked_fill(~lines.window_masks, -torch.inf)
    scores = torch.cat([to_prefix, to_lines], dim=-1)
    softmax_dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=softmax_dtype).to(prefix_values.dtype)
    from_prefix = weights[..., :prefix].flatten(2, 3) @ prefix_values
    from_lines = (weights[..., prefix:] @ lines.windows(grid[2])).flatten(2, 3)
    return lines.by_line(from_prefix + from_lines)


# --- FlexAttention


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
