"""One new token through the layers: what `Layer.forward` does for a whole stream, written out for a row per candidate.

The modules' own `forward` costs a new token more time in Python than in arithmetic; a test holds both equal. And rows side by
side: a token of some dozen rows is too little work for torch to share out, operation by operation, among the cores of a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators._cache import LayerCache
from thousandwords.generators._layers import Layer


def read_one(layer: Layer, stream: Tensor, position: int, cache: LayerCache) -> Tensor:
    """The stream (B, D) of one new image position through one layer that remembers those before it: (B, D)."""
    attention, mlp = layer.attention, layer.mlp
    read = _linear(attention.query_key_value, _normalised(layer.attention_norm, stream))
    attended = cache.step(position, read.view(len(read), 3, attention.num_heads, -1))
    stream = stream + _linear(attention.output, attended)
    hidden = mlp.activation(_linear(mlp.hidden, _normalised(layer.mlp_norm, stream)))
    return stream + _linear(mlp.output, hidden)


def _linear(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return F.linear(inputs, linear.weight, linear.bias)


def _normalised(norm: nn.LayerNorm, stream: Tensor) -> Tensor:
    return F.layer_norm(stream, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


LEAST_ROWS = 8  # of a share: fewer make a matrix product that mostly reads weights


def shares(rows: int, device: torch.device) -> list[slice]:
    """Rows dealt out evenly to the cores of a CPU: shares(33, cpu) of two cores -> [0:17, 17:33]; elsewhere one share."""
    is_shared = device.type == "cpu" and not torch.is_autocast_enabled("cpu")  # autocast is a setting of each thread
    count = max(1, min(torch.get_num_threads(), rows // LEAST_ROWS)) if is_shared else 1
    borders = [-(-rows * share // count) for share in range(count + 1)]
    return [slice(*both) for both in pairwise(borders)]


def side_by_side(work: Callable[[slice], Tensor], parts: Sequence[slice]) -> list[Tensor]:
    """`work` of each part, on a thread each, which keep to one core; of a single part with all cores, here."""
    if len(parts) == 1:
        return [work(parts[0])]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(parts), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)  # the setting of threads to come is one for the whole process
