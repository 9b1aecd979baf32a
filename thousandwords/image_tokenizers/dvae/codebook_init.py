"""A first codebook in which like words are neighbours: ours, off in the paper (arXiv 2102.12092 starts at random).

The words start as points spread over a cube of a few dimensions, the encoder's logits as minus the squared
distance to them. A step that helps one word then helps its neighbours, and many words are in use from the first
update. Only first weights are set; every weight then trains freely. docs/recipes-dvae.md has what it gave.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 4096  # features that the principal directions are taken from
DEVIATION = 0.5  # of the features along each axis of the cube [-1, 1]


def spread_points(count: int, dimensions: int) -> Tensor:
    """So many points evenly over the cube [-1, 1]^dimensions (Sobol's sequence): (count, dimensions)."""
    return 2 * torch.quasirandom.SobolEngine(dimensions).draw(count) - 1


def principal_directions(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Directions (count, C) in which features (N, C) vary most, scaled to an even deviation; and their mean (C,)."""
    rows = features[:: max(1, len(features) // ROWS)]
    mean = rows.mean(dim=0)
    _, spread, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    deviations = spread[:count, None] / len(rows) ** 0.5
    return directions[:count] * DEVIATION / deviations.clamp_min(1e-6), mean


@torch.no_grad()
def order_words(
    logits: nn.Conv2d, codebook: nn.Conv2d, features: Tensor, dimensions: int, sharpness: float, rng: torch.Generator
) -> None:
    """Sets the encoder's last and the decoder's first convolution, given what the encoder sees: features (N, C).

    With z the principal components of a feature and e one point per word, logits = -sharpness * |z - e|^2, less the
    term that all words share, and a word's vector is a random linear map of its e.
    """
    directions, mean = principal_directions(features, dimensions)
    points = spread_points(logits.out_channels, dimensions).to(features)
    weight = 2 * sharpness * points @ directions
    logits.weight.copy_(weight[:, :, None, None])
    logits.bias.copy_(-weight @ mean - sharpness * points.square().sum(dim=1))
    axes = torch.randn(dimensions, codebook.out_channels, generator=rng, device=rng.device).to(features)
    codebook.weight.copy_((points @ axes).T[:, :, None, None])
