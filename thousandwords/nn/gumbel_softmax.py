"""Sample tokens so that gradients pass: Gumbel-softmax, and the two entropies that keep the tokens in use.

After arXiv 2102.12092, section 2.1 (and Jang et al., arXiv 1611.01144). Tokens are the last axis, V: a CPU
computes a softmax over the last axis several times faster than over another.
"""

import math

import torch
from torch import Tensor


def gumbel_softmax(logits: Tensor, temperature: float, rng: torch.Generator, noise: float = 1.0) -> Tensor:
    """A relaxed sample from each categorical: logits (..., V) -> points of the simplex, same shape.

    `noise` is not in the paper: below 1 the sample is closer to the arg-max, at 0 it is a softmax at this
    temperature.
    """
    uniform = torch.rand(logits.shape, generator=rng, device=rng.device).clamp_min_(1e-12).to(logits.device)
    minus_gumbel = uniform.log_().neg_().log_()
    return (torch.sub(logits, minus_gumbel, alpha=noise) / temperature).softmax(dim=-1)


def kl_and_usage(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(..., V) -> KL of each token to the uniform prior (...), entropy of the average token (), in nats."""
    log_probabilities = logits.log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    kl = (probabilities * log_probabilities).sum(dim=-1) + math.log(logits.shape[-1])
    average = probabilities.flatten(0, -2).mean(dim=0).clamp_min(1e-12)  # at 0 the gradient is infinite
    return kl, torch.special.entr(average).sum()
