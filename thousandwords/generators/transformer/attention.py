"""How the layers attend over a whole sequence: dense, blocked or by FlexAttention, with equal values."""

from __future__ import annotations

import torch
from torch import Tensor

from thousandwords.generators.transformer.attention_blocks import Lines, blocked_attention
from thousandwords.generators.transformer.attention_flex import (
    FlexOrder,
    compiled_flex_attention,
    is_supported,
)
from thousandwords.nn.transformer_layers import Attend, dense_attention

LARGE_SIDE = 16  # cells; below it dense attention costs less than cutting the sequence into lines
MIN_GAIN = 2.5  # times fewer keys, below which blocked attention costs more than it saves (measured on a CPU)


class AttentionBackends:
    """Chooses the attention of each kind of layer, and keeps what was computed or compiled for it."""

    def __init__(self, setting: str, prefix_length: int, side: int, kernel: int) -> None:
        """`setting` is the config's `attention`: auto, dense, blocked or flex."""
        self.setting, self.prefix_length, self.side, self.kernel = setting, prefix_length, side, kernel
        self.lines: dict[tuple[str, torch.device], Lines] = {}
        self.flex: dict[tuple[str, int, torch.device], Attend] = {}

    def choose(self, kind: str, mask: Tensor, length: int) -> Attend:
        """The attention over the first `length` positions under the mask (S, S) of one kind of layer."""
        if not self.uses_flex(mask.device):
            return self._dense_or_blocked(kind, mask, length)
        key = (kind, length, mask.device)
        if key not in self.flex:
            order = FlexOrder(kind, self.prefix_length, self.side, self.kernel)
            fallback = self._dense_or_blocked(kind, mask, length)
            self.flex[key] = compiled_flex_attention(order, length, mask.device, fallback)
        return self.flex[key]

    def uses_flex(self, device: torch.device) -> bool:
        """Whether a pass on that device, here and now, attends by FlexAttention."""
        if device.type == "meta" or not torch.is_grad_enabled():
            return False
        is_requested = self.setting == "flex"
        is_candidate = is_requested or (self.setting == "auto" and self.side >= LARGE_SIDE)
        return is_candidate and is_supported(device, is_requested)

    def _dense_or_blocked(self, kind: str, mask: Tensor, length: int) -> Attend:
        is_requested = self.setting == "blocked"
        is_small = not is_requested and (self.side < LARGE_SIDE or mask.device.type == "cuda")
        if (
            self.setting == "dense" or is_small or mask.is_meta
        ):  # a meta mask has no values to compute lines from
            return dense_attention(mask[:length, :length])
        key = (kind, mask.device)
        if key not in self.lines:
            self.lines[key] = Lines(mask, self.prefix_length, self.side, kind == "column")
        if not is_requested and self.lines[key].num_keys * MIN_GAIN > len(mask):
            return dense_attention(mask[:length, :length])
        return blocked_attention(self.lines[key])
