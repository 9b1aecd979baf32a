"""Pre-norm transformer layers (arXiv 2102.12092, section 2.2): 4 d^2 weights of attention, 8 d^2 of MLP.

A layer gets `attend`, a function from queries, keys and values to the attention output. The paper names
neither its activation nor any dropout: both are settings. Only float16 needs the two gradient scales.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.nn.causal_attention_cpu import BlockedCausalAttention
from thousandwords.nn.grad_scaling import GradientScale, ResidualPath

# queries, keys, values (B, heads, n, head width) -> same shape as queries
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def quick_gelu(inputs: Tensor) -> Tensor:
    """CLIP's and GPT-1's approximation of the GELU."""
    return inputs * torch.sigmoid(1.702 * inputs)


def tanh_gelu(inputs: Tensor) -> Tensor:
    """The approximation of the GELU by tanh (GPT-2, VAR)."""
    return F.gelu(inputs, approximate="tanh")


def swiglu(inputs: Tensor) -> Tensor:
    """The second half of the channels, gated by the SiLU of the first (arXiv 2002.05202): (..., 2 n) -> (..., n)."""
    gates, values = inputs.chunk(2, dim=-1)
    return F.silu(gates) * values


ACTIVATIONS = {
    "gelu": F.gelu,
    "tanh_gelu": tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "swiglu": swiglu,
}


class Layer(nn.Module):
    """Attention, then an MLP, each with a norm before it and a residual connection around it."""

    def __init__(self, width: int, num_heads: int, activation: str = "gelu", dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width, activation)
        self.attention_scale, self.mlp_scale = GradientScale(), GradientScale()

    def forward(self, hidden_states: Tensor, attend: Attend) -> Tensor:
        """hidden_states (B, n, D) -> (B, n, D)."""
        normalized = self.attention_norm(self.attention_scale.unscale_grad(hidden_states))
        attended = self.attention(normalized, attend)
        hidden_states = hidden_states + self.attention_scale.scale_grad(self._drop(attended))
        mlp_output = self.mlp(self.mlp_norm(self.mlp_scale.unscale_grad(hidden_states)))
        return hidden_states + self.mlp_scale.scale_grad(self._drop(mlp_output))

    def _drop(self, output: Tensor) -> Tensor:
        return F.dropout(output, self.dropout, self.training) if self.dropout else output

    def residual_paths(self) -> list[ResidualPath]:
        """The paths of attention and MLP, each with the norm before it."""
        attention = (*self.attention_norm.parameters(), *self.attention.parameters())
        mlp = (*self.mlp_norm.parameters(), *self.mlp.parameters())
        return [ResidualPath(self.attention_scale, attention), ResidualPath(self.mlp_scale, mlp)]


class Attention(nn.Module):
    """Multi-head attention; the caller's `attend` decides which positions are visible."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, attend: Attend) -> Tensor:
        """hidden_states (B, n, D) -> (B, n, D)."""
        projected = self.query_key_value(hidden_states)
        split = projected.unflatten(-1, (3, self.num_heads, -1))  # (B, n, 3, heads, head width)
        queries, keys, values = split.transpose(1, 3).unbind(dim=2)
        return self.output(attend(queries, keys, values).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with an activation between them.

    SwiGLU's first map has twice the output, so `hidden_width` becomes two thirds of it, rounded up to a multiple of 8:
    about as many weights (LlamaGen, arXiv 2406.06525, rounds up to 256).
    """

    def __init__(self, width: int, hidden_width: int, activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        is_gated = activation == "swiglu"
        if is_gated:
            hidden_width = -(-hidden_width // 12) * 8
        self.hidden = nn.Linear(width, 2 * hidden_width if is_gated else hidden_width)
        self.output = nn.Linear(hidden_width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states (B, n, D) -> (B, n, D)."""
        return self.output(self.activation(self.hidden(hidden_states)))


def dense_attention(mask: Tensor) -> Attend:
    """Self-attention over a whole sequence with a causal mask (n, n), True where a query sees a key."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if queries.device.type == "cpu":
            return BlockedCausalAttention.apply(queries, keys, values, mask)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

    return attend


def attention(queries: Tensor, keys: Tensor, values: Tensor, is_key: Tensor | None = None) -> Tensor:
    """Attention of queries that are scaled already, to all keys or those where `is_key` (B, n) is True.

    On a CPU by plain products: torch's fused kernel is made for long sequences, and took half of an update in bfloat16.
    """
    mask = None if is_key is None else is_key[:, None, None]
    if queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)
    scores = queries @ keys.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ values
