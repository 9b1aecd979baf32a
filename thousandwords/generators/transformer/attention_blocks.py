"""Blocked attention: each line of the grid attends to the prefix and to the few lines in its mask.

In a grid of 32 x 32 a whole mask has 1,282 keys per query, of which a row layer uses about 290. Here the
image positions are cut into lines, and each line meets only the lines within reach. Column layers are
transposed first, so that a column is a line (the column trick of arXiv 2102.12092, section 2.2). The reach is
computed from the masks of masks.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thousandwords.nn.transformer_layers import Attend, dense_attention


class Lines:
    """The lines of one kind of mask: their order, how many lines back they reach, and their masks."""

    def __init__(self, mask: Tensor, prefix_length: int, side: int, is_transposed: bool):
        self.prefix_length, self.side, self.is_transposed = prefix_length, side, is_transposed
        image = mask[prefix_length:, prefix_length:]
        order = self.by_line(torch.arange(side * side, device=mask.device).view(1, 1, -1, 1)).flatten()
        blocks = image[order][:, order].view(side, side, side, side)  # query line, query, key line, key
        line_sees_line = blocks.any(dim=3).any(dim=1)
        query_line, key_line = line_sees_line.nonzero().T
        self.reach = int((query_line - key_line).max())
        self.window_masks = torch.stack([self._window_mask(blocks[line], line) for line in range(side)])
        self.prefix_mask = mask[:prefix_length, :prefix_length]

    @property
    def num_keys(self) -> int:
        """How many keys an image position is compared with."""
        return self.prefix_length + (self.reach + 1) * self.side

    def _window_mask(self, block: Tensor, line: int) -> Tensor:
        """The mask of a line over those in its reach: block (side, side, side) -> (side, (reach + 1) * side)."""
        padded = F.pad(block, (0, 0, self.reach, 0))  # lines before the first are seen by no position
        return padded[:, line : line + self.reach + 1].flatten(1)

    def by_line(self, values: Tensor) -> Tensor:
        """Order by line: (B, heads, side * side, x) -> the same shape."""
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
        parts = [
            tensor.split([prefix, tensor.shape[2] - prefix], dim=2) for tensor in (queries, keys, values)
        ]
        text = dense_attention(lines.prefix_mask)(*(part[0] for part in parts))
        missing = side * side - parts[0][1].shape[2]
        grid = [F.pad(part[1], (0, 0, 0, missing)) for part in parts]
        image = _attend_image(lines, grid, parts[1][0], parts[2][0])
        return torch.cat([text, image[:, :, : side * side - missing]], dim=2)

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
    return lines.by_line(from_prefix + from_lines)  # transposing again restores the raster order
