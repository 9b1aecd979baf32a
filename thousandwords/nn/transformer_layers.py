"""Pre-norm transformer layers that do not know whether they read a whole stream or one new token.

A layer is handed `attend`, a function from queries, keys and values to what is attended to: `dense` makes one
for a whole stream, _cache.py one that remembers the keys and values of the tokens before. Sizes as in arXiv
2102.12092 section 2.2: 4 d^2 weights of attention and 8 d^2 of MLP. The paper names neither its activation nor any
dropout: both are settings. Each of the two residual paths has a gradient scale, which float16 needs; else it is off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators._strips import Strips
from thousandwords.scaling import GradientScale, ResidualPath

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values (B, heads, n, head width) -> as queries


def quick_gelu(inputs: Tensor) -> Tensor:
    """CLIP's and GPT-1's approximation of the GELU."""
    return inputs * torch.sigmoid(1.702 * inputs)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu, "relu": F.relu}


class Layer(nn.Module):
    """Attention, then an MLP, each added to the stream it reads normalised."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int, activation: str = "gelu", dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio * width, activation)
        self.attention_scale, self.mlp_scale = GradientScale(), GradientScale()

    def forward(self, stream: Tensor, attend: Attend) -> Tensor:
        """stream (B, n, D) -> (B, n, D)."""
        attended = self.attention(self.attention_norm(self.attention_scale.of_input(stream)), attend)
        stream = stream + self.attention_scale.of_output(self._drop(attended))
        return stream + self.mlp_scale.of_output(self._drop(self.mlp(self.mlp_norm(self.mlp_scale.of_input(stream)))))

    def _drop(self, output: Tensor) -> Tensor:
        return F.dropout(output, self.dropout, self.training) if self.dropout else output

    def residual_paths(self) -> list[ResidualPath]:
        """Attention and MLP, each with the norm before it."""
        attention = (*self.attention_norm.parameters(), *self.attention.parameters())
        mlp = (*self.mlp_norm.parameters(), *self.mlp.parameters())
        return [ResidualPath(self.attention_scale, attention), ResidualPath(self.mlp_scale, mlp)]


class Attention(nn.Module):
    """Multi-head attention whose pattern is in the hands of the caller."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, stream: Tensor, attend: Attend) -> Tensor:
        """stream (B, n, D) -> (B, n, D)."""
        split = self.query_key_value(stream).unflatten(-1, (3, self.num_heads, -1))  # (B, n, 3, heads, head width)
        queries, keys, values = split.transpose(1, 3).unbind(dim=2)
        return self.output(attend(queries, keys, values).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, width: int, hidden_width: int, activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.hidden = nn.Linear(width, hidden_width)
        self.output = nn.Linear(hidden_width, width)

    def forward(self, stream: Tensor) -> Tensor:
        """stream (B, n, D) -> (B, n, D)."""
        return self.output(self.activation(self.hidden(stream)))


def dense(mask: Tensor) -> Attend:
    """Attention of a whole stream to itself under a mask (n, n), True where a query sees a key, never a later one."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if queries.device.type == "cpu":
            return Strips.apply(queries, keys, values, mask)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

    return attend
