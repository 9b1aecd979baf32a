"""One new token through the layers: what `Layer.forward` does for a whole stream, written out for a row per candidate.

The modules' own `forward` costs a new token more time in Python than in arithmetic; a test holds both equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators._cache import LayerCache
from thousandwords.generators._layers import Layer


def read_one(layer: Layer, stream: Tensor, position: int, cache: LayerCache) -> Tensor:
    """The stream (B, D) of one new image position through one layer that remembers those before it: (B, D)."""
    read = _linear(layer.attention.query_key_value, _normalised(layer.attention_norm, stream))
    return _with(layer, stream, cache.step(position, read.view(len(read), 3, layer.attention.num_heads, -1)))


def read_last(layer: Layer, stream: Tensor, cache: LayerCache, seen: Tensor) -> Tensor:
    """As the last of a model's layers reads a beginning (U, n, D): all of it is remembered, of the last position read out.

    `seen` (n,): what that position sees. -> (U, D).
    """
    read = _linear(layer.attention.query_key_value, _normalised(layer.attention_norm, stream))
    split = read.unflatten(-1, (3, layer.attention.num_heads, -1))
    queries, keys, values = split.transpose(1, 3).unbind(dim=2)  # (U, heads, n, head width)
    cache.remember(keys, values)
    attended = F.scaled_dot_product_attention(queries[:, :, -1:], keys, values, attn_mask=seen[None])
    return _with(layer, stream[:, -1], attended.flatten(1))


def _with(layer: Layer, stream: Tensor, attended: Tensor) -> Tensor:
    """The stream (B, D) with what it attended to (B, heads * head width), and with what the MLP makes of both."""
    stream = stream + _linear(layer.attention.output, attended)
    hidden = layer.mlp.activation(_linear(layer.mlp.hidden, _normalised(layer.mlp_norm, stream)))
    return stream + _linear(layer.mlp.output, hidden)


def _linear(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return F.linear(inputs, linear.weight, linear.bias)


def _normalised(norm: nn.LayerNorm, stream: Tensor) -> Tensor:
    return F.layer_norm(stream, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


LEAST_WORK = 2**21  # multiplications of a layer's widest product, from which two idle cores gain a fifth and more (measured)


@contextlib.contextmanager
def cores_for(rows: int, hidden: nn.Linear) -> Iterator[None]:
    """Keeps torch to one core of a CPU for as long, unless a token of so many rows is work enough to share out.

    Less is over sooner on one core than cores have told each other to begin. The choice is by size alone, never by what else the
    machine does, so that the same seed gives the same bits: beside a process that takes a whole core OMP_NUM_THREADS=1 is faster.
    Threads of Python that draw rows each are no way out: they wait for one another after each operation.
    """
    threads = torch.get_num_threads()
    is_small = hidden.weight.device.type == "cpu" and rows * hidden.weight.numel() < LEAST_WORK
    try:
        torch.set_num_threads(1 if is_small else threads)
        yield
    finally:
        torch.set_num_threads(threads)
