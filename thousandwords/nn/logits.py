"""From logits (B, V) to tokens: temperature, top-k, top-p, guidance and sampling, as pure functions.

Each token takes one uniform number from the row's own generator, so an image depends on (seed, prompt,
candidate) and not on its batch, up to one thing: a product may round the last bit of a logit differently for
another batch size, which changes a token only if its number lies within that bit of a border.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from thousandwords.core.special_tokens import PAD

TOP_P_CANDIDATES = 64  # this many tokens hold most of the probability of most rows


def uniforms(rngs: Sequence[torch.Generator], count: int) -> Tensor:
    """`count` numbers in [0, 1) from each row's own generator: (B, count) float64, on the CPU."""
    rows = [torch.rand(count, generator=rng, dtype=torch.float64, device=rng.device).cpu() for rng in rngs]
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.float64)


def sample_token(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token where cumulative probability exceeds `uniform` (B,): (B,) int64, never of probability 0."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    total = cumulative[:, -1:]
    # uniform * total can round up to the total itself, which no cumulative probability exceeds
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniform.to(total)[:, None] * total, below_total)
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def truncate(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Temperature, then top-k, then top-p of what is left: (B, V) -> (B, V), -inf for the tokens removed.

    `inference.config.SamplingConfig` checks the ranges: temperature above 0, top_k from 1, top_p in (0, 1].
    """
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None:  # the k most likely tokens, and those as likely as the last of them
        threshold = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    return logits if top_p is None else keep_top_p(logits, top_p)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest of the most likely tokens whose probabilities sum to p: (B, V) -> (B, V)."""
    probabilities = logits.double().softmax(dim=-1)
    ordered = _most_likely(probabilities, top_p)  # (B, k)
    # a token is kept if the more likely ones do not reach p yet
    count = (ordered.cumsum(dim=-1) - ordered < top_p).sum(dim=-1, keepdim=True)
    last = ordered.gather(-1, count - 1)
    is_tied = probabilities == last  # of the tokens as likely as the last one, the first few are kept
    num_tied = count - (probabilities > last).sum(dim=-1, keepdim=True)
    is_removed = (probabilities < last) | (is_tied & (is_tied.cumsum(dim=-1) > num_tied))
    return logits.masked_fill(is_removed, -torch.inf)


def _most_likely(probabilities: Tensor, top_p: float) -> Tensor:
    """The largest of each row, sorted, enough to reach `top_p`: (B, V) -> (B, k). Few rows need a full sort."""
    if probabilities.device.type == "cpu" and probabilities.shape[-1] > TOP_P_CANDIDATES:
        largest = probabilities.topk(TOP_P_CANDIDATES, dim=-1).values
        if bool((largest.sum(dim=-1) > top_p + 1e-9).all()):  # by more than the rounding of a sum
            return largest
    return probabilities.sort(dim=-1, descending=True).values


def apply_guidance(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: away from the logits without a caption (B, V); 1 changes nothing."""
    if conditional is unconditional:
        return conditional
    return unconditional + guidance * (conditional - unconditional)


def log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln p of tokens: logits (B, n, V), tokens (B, n) -> (B, n) float32, 0 at pads; summed in float64."""
    log_probs = logits.double().log_softmax(dim=-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
    return log_probs.masked_fill(tokens == PAD, 0).float()
