"""From logits to tokens: temperature, top-k, top-p, guidance and the draw, as pure functions on logits (B, V).

arXiv 2102.12092 samples at temperature 1 without truncation; the rest are the usual ways to trade variety for
likelihood. The draw takes one uniform number per token from a generator of the row's own, so a row's picture
depends on (seed, prompt, candidate) and not on its batch. What remains is the last bit of the logits, which a
matrix product may round differently for another batch size: the sum is taken in float64, so that only a number
within that last bit of a border can tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FEW = 64  # tokens that hold most of the probability of most rows


def uniforms(rngs: Sequence[torch.Generator], count: int) -> Tensor:
    """`count` numbers in [0, 1) from the generator of each row: (B, count) float64, on the CPU."""
    rows = [torch.rand(count, generator=rng, dtype=torch.float64, device=rng.device).cpu() for rng in rngs]
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.float64)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes `uniform` (B,): (B,) int64, never one of probability 0."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    total = cumulative[:, -1:]
    # uniform * total can round up to the total itself, which no token passes
    threshold = torch.minimum(uniform.to(total)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def truncate(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Temperature, then top-k, then top-p of what is left: (B, V) -> (B, V), -inf where a token is ruled out."""
    logits = with_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Sharper below 1, flatter above: (B, V) -> (B, V)."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (for the likeliest token use top_k 1)")
    return logits / temperature if temperature != 1 else logits


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Rule out all but the k likeliest tokens (and those level with the last): (B, V) -> (B, V)."""
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; keep 1 token or more, or leave top_k empty to keep all")
    smallest_kept = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Rule out all but the fewest likeliest tokens whose probabilities reach p: (B, V) -> (B, V)."""
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1, or empty to keep all")
    probabilities = logits.double().softmax(dim=-1)
    ordered = _likeliest(probabilities, top_p)  # (B, k)
    count = (ordered.cumsum(dim=-1) - ordered < top_p).sum(dim=-1, keepdim=True)  # whose likelier ones do not reach it yet
    last = ordered.gather(-1, count - 1)
    level = probabilities == last  # of tokens level with the last one kept, the first few are kept
    left = count - (probabilities > last).sum(dim=-1, keepdim=True)
    return logits.masked_fill((probabilities < last) | (level & (level.cumsum(dim=-1) > left)), -torch.inf)


def _likeliest(probabilities: Tensor, top_p: float) -> Tensor:
    """The greatest of each row in order, as many as reach `top_p` or more: (B, V) -> (B, k). Most rows need few, and no sort."""
    for count in (FEW,) if probabilities.device.type == "cpu" and probabilities.shape[-1] > FEW else ():
        found = probabilities.topk(count, dim=-1).values
        if bool((found.sum(dim=-1) > top_p + 1e-9).all()):  # by more than a sum's rounding
            return found
    return probabilities.sort(dim=-1, descending=True).values


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: away from what is drawn without the caption; 1 changes nothing."""
    if conditional is unconditional:
        return conditional
    return unconditional + guidance * (conditional - unconditional)
