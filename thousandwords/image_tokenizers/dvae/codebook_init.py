"""A first codebook in which similar tokens are neighbors; not in the paper, which starts at random.

The tokens start as points spread over a cube of a few dimensions, the encoder's logits as minus the squared
distance to them: an update that helps one token helps its neighbors. Results: docs/recipes-dvae.md.
"""

import torch
from torch import Tensor, nn

MAX_ROWS = 4096  # features that the principal directions are computed from
SHARPNESS = 25.0  # of the first logits: higher is closer to the nearest point alone
DEVIATION = 0.5  # of the features along each axis of the cube [-1, 1]


def sobol_points(count: int, dimensions: int) -> Tensor:
    """Points spread evenly over the cube [-1, 1]^dimensions (Sobol's sequence): (count, dimensions)."""
    return 2 * torch.quasirandom.SobolEngine(dimensions).draw(count) - 1


def principal_directions(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Directions (count, C) of largest variance of features (N, C), scaled to equal deviation; their mean (C,)."""
    rows = features[:: max(1, len(features) // MAX_ROWS)]
    mean = rows.mean(dim=0)
    _, singular_values, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    deviations = singular_values[:count, None] / len(rows) ** 0.5
    return directions[:count] * DEVIATION / deviations.clamp_min(1e-6), mean


@torch.no_grad()
def init_codebook(
    logits: nn.Conv2d, codebook: nn.Conv2d, features: Tensor, dimensions: int, rng: torch.Generator
) -> None:
    """Set the encoder's last and the decoder's first convolution from the encoder's features (N, C).

    With z the principal components of a feature and e one point per token, logits = -SHARPNESS * |z - e|^2,
    without the term that all tokens share, and the vector of a token is a random linear map of its e.
    """
    directions, mean = principal_directions(features, dimensions)
    points = sobol_points(logits.out_channels, dimensions).to(features)
    weight = 2 * SHARPNESS * points @ directions
    logits.weight.copy_(weight[:, :, None, None])
    logits.bias.copy_(-weight @ mean - SHARPNESS * points.square().sum(dim=1))
    axes = torch.randn(dimensions, codebook.out_channels, generator=rng, device=rng.device).to(features)
    codebook.weight.copy_((points @ axes).T[:, :, None, None])
