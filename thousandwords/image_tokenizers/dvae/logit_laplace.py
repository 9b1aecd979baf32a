"""The logit-Laplace likelihood of pixels (arXiv 2102.12092, section 2.1 and appendix A.3).

A pixel in (0, 1) is the sigmoid of a Laplace variable with mean `mu` and width `b`, so no mass lies on
impossible colors. The decoder outputs six maps: three of mu, three of ln b. It is a density, so the
log-likelihood may be positive and the loss negative.
"""

import math

import torch
from torch import Tensor

MARGIN = 0.1  # epsilon of the paper: keeps pixels off 0 and 1, where the density has its poles


def to_model_range(images: Tensor) -> Tensor:
    """Map pixels from [0, 1] to [margin, 1 - margin]."""
    return (1 - 2 * MARGIN) * images + MARGIN


def to_images(mu: Tensor) -> Tensor:
    """The median of the likelihood as an image: mu -> pixels in [0, 1]."""
    return ((torch.sigmoid(mu) - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)


def log_likelihood(images: Tensor, mu: Tensor, log_width: Tensor) -> Tensor:
    """ln p of each channel of each pixel; all four tensors are (B, 3, H, W), images in [0, 1]."""
    pixels = to_model_range(images)
    distance = (torch.logit(pixels) - mu).abs()
    return -distance * torch.exp(-log_width) - log_width - math.log(2) - torch.log(pixels * (1 - pixels))


def normal_log_likelihood(images: Tensor, mu: Tensor, deviation: float) -> Tensor:
    """ln p of a normal density around the decoded pixels; not in the paper. Large errors count more."""
    decoded = (torch.sigmoid(mu) - MARGIN) / (1 - 2 * MARGIN)  # not clamped: a clamp has no gradient
    return -0.5 * ((images - decoded) / deviation).square() - math.log(deviation * math.sqrt(2 * math.pi))
