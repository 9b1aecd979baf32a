"""Masked attention of a whole stream to itself on a CPU, a strip of queries at a time, each with the keys up to its own end.

Nobody sees a later position, so that half of all pairs are never made. Forward and backward together, against torch's fused
kernel with the same mask on one thread: in float32 0.95 times as fast at 97 positions, 1.15 at 89 and 322, 1.7 at 1,282; in
bfloat16 6.3 times at 89, 3.7 at 97, 2.5 at 322, 2.3 at 1,282. It keeps the weights, which the fused kernel does not: half of
n^2 a head. Left out: second derivatives, which nobody takes.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

VECTOR = 32  # numbers of bfloat16: torch's softmax takes twice as long over 89 columns as over 96


class Strips(torch.autograd.Function):
    """Queries, keys, values (B, heads, n, x), a causal mask (n, n) -> (B, heads, n, x). Weights are in the type of the scores.

    torch's softmax sums in float32 whatever it is given, so that in bfloat16 only the scores themselves are rounded.
    """

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        count, scale = len(mask), queries.shape[-1] ** -0.5
        room = rounded_up(count) - count
        hidden = torch.zeros(count, count + room, dtype=queries.dtype).masked_fill_(~F.pad(mask, (0, room)), -torch.inf)
        rows = [queries.flatten(0, 1)] + [F.pad(tensor, (0, 0, 0, room)).flatten(0, 1) for tensor in (keys, values)]
        attended, weights = torch.empty_like(rows[0]), []
        for first, end, seen in strips(count):
            scores = torch.baddbmm(hidden[first:end, :seen], rows[0][:, first:end], rows[1][:, :seen].mT, alpha=scale)
            weights.append(scores.softmax(dim=-1))
            attended[:, first:end] = weights[-1] @ rows[2][:, :seen]
        ctx.save_for_backward(*rows, *weights)
        return attended.unflatten(0, queries.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *weights = ctx.saved_tensors
        heads, count = slope.shape[:2], slope.shape[2]
        slope = slope.flatten(0, 1)
        to_queries, to_keys, to_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for (first, end, seen), weight in zip(strips(count), weights, strict=True):
            part = slope[:, first:end]
            to_scores = torch._softmax_backward_data(part @ values[:, :seen].mT, weight, -1, weight.dtype)
            to_queries[:, first:end] = to_scores @ keys[:, :seen]
            to_keys[:, :seen] += to_scores.mT @ queries[:, first:end]
            to_values[:, :seen] += weight.mT @ part
        for scaled in (to_queries, to_keys):
            scaled.mul_(queries.shape[-1] ** -0.5)
        return *(tensor[:, :count].unflatten(0, heads) for tensor in (to_queries, to_keys, to_values)), None


def strips(count: int) -> list[tuple[int, int, int]]:
    """First query, the one after the last, keys in view: strips(70) -> [(0, 32, 32), (32, 64, 64), (64, 70, 96)].

    About eight strips, of 32 to 128 queries: fewer make more pairs that nobody looks at, more are small products.
    """
    height = min(128, max(32, rounded_up(count // 8)))
    pairs = [(first, min(first + height, count)) for first in range(0, count, height)]
    return [(first, end, rounded_up(end)) for first, end in pairs]


def rounded_up(count: int) -> int:
    """To whole vectors: 89 -> 96."""
    return -(-count // VECTOR) * VECTOR
