"""Cross-entropy through a large output map, a few positions at a time, so that the logits of all never stand in memory.

A picture of 1,024 words of 8,192 has 34 MB of logits in float32, its caption 17 MB more, and autograd keeps several such tables.
Here each chunk of positions goes the whole way at once: logits, loss, and the gradient of the loss by the logits, all that the
gradients of states and weights need; only those are kept. The backward pass then multiplies them by one number.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators import PAD

LARGE = 2**24  # logits from which on chunks pay: on a CPU they save time from 2**22 on, and below 64 MB a table does not hurt
CHUNK = {"cpu": 2**22, "cuda": 2**25}  # logits at once: few enough for a processor's cache, enough to fill a GPU


def pays(positions: int, vocab_size: int) -> bool:
    """Whether so many positions are better taken in chunks."""
    return positions * vocab_size >= LARGE


def mean_loss(logits: Tensor, words: Tensor, count: float | None = None) -> Tensor:
    """Cross-entropy in nats per word that is no pad, or over `count`: (B, n, V), (B, n) -> scalar, 0 if all are pads."""
    total = F.cross_entropy(logits.flatten(0, 1), words.flatten(), ignore_index=PAD, reduction="sum")
    return total / number_of_words(words, count)


def mean_loss_in_chunks(
    states: Tensor, output: nn.Linear, words: Tensor, count: float | None = None, chunk: int | None = None
) -> Tensor:
    """`mean_loss(output(states), words, count)`: states (B, n, D), words (B, n) -> scalar.

    Under bfloat16 autocast the products are in bfloat16 and all sums in float32; else they are in the type of the states.
    """
    rows = max(1, (chunk or CHUNK.get(states.device.type, LARGE)) // len(output.weight))
    product = product_type(states)
    with torch.autocast(states.device.type, enabled=False):  # what is cast is said here
        total = _Chunks.apply(states.flatten(0, 1), output.weight, output.bias, words.flatten(), rows, product)
    return total / number_of_words(words, count)


def number_of_words(words: Tensor, count: float | None) -> Tensor | float:
    """What a sum over words is divided by: never 0."""
    return (words != PAD).sum().clamp(min=1) if count is None else max(count, 1)


def product_type(states: Tensor) -> torch.dtype:
    """What matrix products are in: float16 has no room for the logits of a large vocabulary, so only bfloat16 is taken."""
    device = states.device.type
    is_cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if is_cast else states.dtype


class _Chunks(torch.autograd.Function):
    """The sum of the losses of all positions; its gradients are made on the way forward, while the logits are at hand."""

    @staticmethod
    def forward(context, states: Tensor, weight: Tensor, bias: Tensor, words: Tensor, rows: int, product: torch.dtype) -> Tensor:
        context.is_needed = any(context.needs_input_grad)
        narrow, total = weight.to(product), states.new_zeros(())
        slopes = [torch.empty_like(states), torch.zeros_like(weight), torch.zeros_like(bias)] if context.is_needed else []
        for start in range(0, len(states), rows):
            part, known = states[start : start + rows].to(product), words[start : start + rows]
            logits = wide(part, narrow.T, states.dtype).add_(bias)
            total += _to_slopes(logits, known)
            if context.is_needed:
                slope = logits.to(product)
                slopes[0][start : start + rows] = slope @ narrow
                slopes[1] += wide(slope.T, part, weight.dtype)
                slopes[2] += logits.sum(dim=0)
        context.save_for_backward(*slopes)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(slope * gradient for slope in context.saved_tensors), None, None, None


def _to_slopes(logits: Tensor, words: Tensor) -> Tensor:
    """The loss of some positions; `logits` (n, V) become its gradient by them, in place: probabilities less 1 at the word."""
    wanted, is_word = words.clamp(min=0)[:, None], (words != PAD)[:, None]
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    loss = ((normaliser - logits.gather(-1, wanted)) * is_word).sum()
    logits.sub_(normaliser).exp_().scatter_add_(-1, wanted, logits.new_full((), -1.0).expand_as(wanted)).mul_(is_word)
    return loss


def wide(left: Tensor, right: Tensor, result: torch.dtype) -> Tensor:
    """left @ right in the type `result`: a GPU sums bfloat16 products in float32, and can hand that sum over unrounded."""
    if left.dtype == torch.bfloat16 and left.device.type == "cuda" and result == torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).to(result)
