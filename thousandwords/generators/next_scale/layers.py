"""A layer of the next-scale transformer: self-attention, cross-attention to the caption, MLP.

Queries and keys have unit length in both attentions (VAR, arXiv 2404.02905). Cross-attention lies between
self-attention and MLP (STAR, arXiv 2406.10797).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.nn.transformer_layers import MLP, Attend, Attention, attention

NORM_EPSILON = 1e-6  # VAR
FIRST_SCALE, MAX_SCALE = 4.0, 100.0  # of the products of unit queries and keys (VAR)


@dataclass
class Caption:
    """What the layers see of the captions of a batch."""

    hidden_states: Tensor  # (B, T, D), of a start and the text tokens
    is_token: Tensor  # (B, T), False at pads
    pooled: Tensor  # (B, D)
    keys_and_values: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention to what is no pad."""
        return attention(queries, keys, values, self.is_token)


class UnitVectors(nn.Module):
    """Queries and keys (B, heads, n, x) of unit length, in float32; the queries times a learned number per head."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(FIRST_SCALE)))

    def queries(self, queries: Tensor) -> Tensor:
        scale = self.log_scale.float().clamp(max=math.log(MAX_SCALE)).exp()
        return F.normalize(queries.float(), dim=-1) * scale[:, None, None]

    def keys(self, keys: Tensor) -> Tensor:
        return F.normalize(keys.float(), dim=-1)


class CrossAttention(nn.Module):
    """Attention of image positions to a caption; keys and values come from one map without bias."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.unit = UnitVectors(num_heads)

    def forward(self, hidden_states: Tensor, caption: Caption) -> Tensor:
        """hidden_states (B, n, D) -> (B, n, D)."""
        if self not in caption.keys_and_values:
            caption.keys_and_values[self] = self._keys_and_values(caption.hidden_states)
        keys, values = caption.keys_and_values[self]
        queries = self.query(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        attended = caption.attend(self.unit.queries(queries).to(values.dtype), keys, values)
        return self.output(attended.transpose(1, 2).flatten(2))

    def _keys_and_values(self, text_states: Tensor) -> tuple[Tensor, Tensor]:
        split = self.key_value(text_states).unflatten(-1, (2, self.num_heads, -1))
        keys, values = split.transpose(1, 3).unbind(dim=2)  # (B, heads, T, x)
        return self.unit.keys(keys).to(values.dtype), values


class ScaleLayer(nn.Module):
    """One layer; `attend` gets unit queries and keys and decides which positions are visible. Without `has_text` the
    words of a caption are not read."""

    def __init__(self, width: int, num_heads: int, activation: str, is_adaptive: bool, has_text: bool = True):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, NORM_EPSILON, not is_adaptive)
        self.attention = Attention(width, num_heads)
        self.unit = UnitVectors(num_heads)
        self.cross_norm = nn.LayerNorm(width, NORM_EPSILON) if has_text else None
        self.cross_attention = CrossAttention(width, num_heads) if has_text else None
        self.mlp_norm = nn.LayerNorm(width, NORM_EPSILON, not is_adaptive)
        self.mlp = MLP(width, 4 * width, activation)
        self.modulation = Modulation(width, 6) if is_adaptive else None

    def forward(self, hidden_states: Tensor, attend: Attend, caption: Caption) -> Tensor:
        """hidden_states (B, n, D) -> (B, n, D)."""

        def attend_unit(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attend(self.unit.queries(queries), self.unit.keys(keys), values)

        if self.modulation is None:
            hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), attend_unit)
            hidden_states = self._read(hidden_states, caption)
            return hidden_states + self.mlp(self.mlp_norm(hidden_states))
        gate, scale, shift, mlp_gate, mlp_scale, mlp_shift = self.modulation(caption.pooled)
        normalized = modulate(self.attention_norm(hidden_states), scale, shift)
        hidden_states = hidden_states + gate * self.attention(normalized, attend_unit)
        hidden_states = self._read(hidden_states, caption)
        normalized = modulate(self.mlp_norm(hidden_states), mlp_scale, mlp_shift)
        return hidden_states + mlp_gate * self.mlp(normalized)

    def _read(self, hidden_states: Tensor, caption: Caption) -> Tensor:
        if self.cross_attention is None:
            return hidden_states
        return hidden_states + self.cross_attention(self.cross_norm(hidden_states), caption)


class Modulation(nn.Module):
    """AdaLN: the caption's vector (B, D) -> `count` vectors (B, 1, D) that scale, shift and gate."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.count, self.linear = count, nn.Linear(width, count * width)

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(pooled))[:, None].chunk(self.count, dim=-1)


def modulate(normalized: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalized states (B, n, D), scaled and shifted by (B, 1, D)."""
    return normalized * (1 + scale) + shift
