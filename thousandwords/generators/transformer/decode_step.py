"""One new token through a layer: `Layer.forward` written out for a single position per candidate.

Calling the modules' own `forward` takes more time in Python than the arithmetic of one token; a test holds
both equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators.transformer.kv_cache import LayerCache
from thousandwords.nn.transformer_layers import Layer

MIN_MULTIPLICATIONS = (
    2**21
)  # of a layer's widest product: from here on two cores gain a fifth or more (measured)


def layer_step(layer: Layer, hidden_states: Tensor, position: int | Tensor, cache: LayerCache) -> Tensor:
    """One new image position (B, D) through one layer, with the cached positions before it: (B, D)."""
    qkv = _linear(layer.attention.query_key_value, _normalized(layer.attention_norm, hidden_states))
    attended = cache.step(position, qkv.view(len(qkv), 3, layer.attention.num_heads, -1))
    return _finish_layer(layer, hidden_states, attended)


def prefill_last_layer(layer: Layer, hidden_states: Tensor, cache: LayerCache, last_row: Tensor) -> Tensor:
    """The last layer over a beginning (U, n, D): all positions cached, the output of the last one (U, D).

    `last_row` (n,) is the mask of the last position.
    """
    qkv = _linear(layer.attention.query_key_value, _normalized(layer.attention_norm, hidden_states))
    split = qkv.unflatten(-1, (3, layer.attention.num_heads, -1))
    queries, keys, values = split.transpose(1, 3).unbind(dim=2)  # (U, heads, n, head width)
    cache.store(keys, values)
    attended = F.scaled_dot_product_attention(queries[:, :, -1:], keys, values, attn_mask=last_row[None])
    return _finish_layer(layer, hidden_states[:, -1], attended.flatten(1))


def _finish_layer(layer: Layer, hidden_states: Tensor, attended: Tensor) -> Tensor:
    """Output map and MLP: hidden states (B, D), attended (B, heads * head width) -> (B, D)."""
    hidden_states = hidden_states + _linear(layer.attention.output, attended)
    activations = layer.mlp.activation(_linear(layer.mlp.hidden, _normalized(layer.mlp_norm, hidden_states)))
    return hidden_states + _linear(layer.mlp.output, activations)


def _linear(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return F.linear(inputs, linear.weight, linear.bias)


def _normalized(norm: nn.LayerNorm, hidden_states: Tensor) -> Tensor:
    return F.layer_norm(hidden_states, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


@contextlib.contextmanager
def limit_threads(rows: int, widest: nn.Linear) -> Iterator[None]:
    """Limit torch to one CPU thread inside the block if a token of that many rows is too little work for more.

    Small products finish on one core before several have synchronized. The choice depends on sizes only,
    never on the machine's load, so that the same seed gives the same bits. Under load from another process
    OMP_NUM_THREADS=1 is faster. Python threads that each sample some rows do not help: they wait for each
    other after every operation.
    """
    threads = torch.get_num_threads()
    is_small = widest.weight.device.type == "cpu" and rows * widest.weight.numel() < MIN_MULTIPLICATIONS
    try:
        torch.set_num_threads(1 if is_small else threads)
        yield
    finally:
        torch.set_num_threads(threads)
