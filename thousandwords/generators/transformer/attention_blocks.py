"""The fast path of the dense attention: each line of the grid reads the prefix and the few lines that its mask lets it see.

In a grid of 32 x 32 a whole mask has 1,282 keys per query, of which a row layer uses about 290. Here the image positions are cut
into lines, and each line meets only the lines within reach; column layers are transposed first, so that a column is a line (the
column trick of arXiv 2102.12092, section 2.2). What is in reach is read off the mask of _masks.py, the one source of truth.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thousandwords.generators._layers import Attend, dense


class Lines:
    """The lines of one kind of mask: their order, how many before it a line reaches, and who in them sees whom."""

    def __init__(self, mask: Tensor, prefix_length: int, side: int, is_transposed: bool):
        self.prefix_length, self.side, self.is_transposed = prefix_length, side, is_transposed
        image = mask[prefix_length:, prefix_length:]
        order = self.ordered(torch.arange(side * side, device=mask.device).view(1, 1, -1, 1)).flatten()
        blocks = image[order][:, order].view(side, side, side, side)  # query line, query, key line, key
        lines = blocks.any(dim=3).any(dim=1)  # which line sees any of which
        above, below = lines.nonzero().T
        self.reach = int((above - below).max())
        self.seen = torch.stack([self._window_mask(blocks[line], line) for line in range(side)])
        self.prefix_mask = mask[:prefix_length, :prefix_length]

    @property
    def keys(self) -> int:
        """How many keys an image position is compared with."""
        return self.prefix_length + (self.reach + 1) * self.side

    def _window_mask(self, block: Tensor, line: int) -> Tensor:
        """Who sees whom among a line and those in its reach: block (side, side, side) -> (side, (reach + 1) * side)."""
        padded = F.pad(block, (0, 0, self.reach, 0))  # lines before the first, seen by nobody
        return padded[:, line : line + self.reach + 1].flatten(1)

    def ordered(self, values: Tensor) -> Tensor:
        """(B, heads, side * side, x) -> the same, line after line."""
        if not self.is_transposed:
            return values
        return values.unflatten(2, (self.side, self.side)).transpose(2, 3).flatten(2, 3)

    def windows(self, values: Tensor) -> Tensor:
        """(B, heads, side * side, x) -> each line and those in its reach: (B, heads, side, (reach + 1) * side, x)."""
        lines = F.pad(self.ordered(values).unflatten(2, (self.side, self.side)), (0, 0, 0, 0, self.reach, 0))
        return lines.unfold(2, self.reach + 1, 1).permute(0, 1, 2, 5, 3, 4).flatten(3, 4)


def blocked(lines: Lines) -> Attend:
    """As `dense` with the mask that `lines` were read off, for a stream that may lack its last positions."""
    prefix, side = lines.prefix_length, lines.side

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = [tensor.split([prefix, tensor.shape[2] - prefix], dim=2) for tensor in (queries, keys, values)]
        text = dense(lines.prefix_mask)(*(part[0] for part in parts))
        missing = side * side - parts[0][1].shape[2]
        grid = [F.pad(part[1], (0, 0, 0, missing)) for part in parts]
        image = _attend_to_both(lines, grid, parts[1][0], parts[2][0])
        return torch.cat([text, image[:, :, : side * side - missing]], dim=2)

    return attend


def _attend_to_both(lines: Lines, grid: list[Tensor], prefix_keys: Tensor, prefix_values: Tensor) -> Tensor:
    """One softmax over the prefix and the lines in reach, for every image position: (B, heads, side * side, x)."""
    side, prefix = lines.side, lines.prefix_length
    queries = lines.ordered(grid[0]) * grid[0].shape[-1] ** -0.5
    to_prefix = (queries @ prefix_keys.transpose(2, 3)).unflatten(2, (side, side))
    to_lines = queries.unflatten(2, (side, side)) @ lines.windows(grid[1]).transpose(3, 4)
    to_lines = to_lines.masked_fill(~lines.seen, -torch.inf)
    scores = torch.cat([to_prefix, to_lines], dim=-1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=exact).to(prefix_values.dtype)
    from_prefix = weights[..., :prefix].flatten(2, 3) @ prefix_values
    from_lines = (weights[..., prefix:] @ lines.windows(grid[2])).flatten(2, 3)
    return lines.ordered(from_prefix + from_lines)  # transposing twice is no transposing
