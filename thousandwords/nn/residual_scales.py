"""A grid of latents as a sum of grids of growing sides (VAR, arXiv 2404.02905, algorithms 1 and 2).

Each grid approximates what the grids before it left over. Axes: B images, C channels, S scales; the latents have
the side of the last scale. Everything here is float32, also under autocast: the tokens must not depend on it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords.nn.quantizers import without_autocast

PHI_SHARE = 0.5  # of phi's convolution; the rest is its input


class ResidualScales(nn.Module):
    """Latents (B, C, h, h) <-> the points of every scale (B, side * side, C), coarse to fine, each grid in raster
    order."""

    def __init__(self, scales: Sequence[int], channels: int, num_phi: int):
        super().__init__()
        self.scales = tuple(scales)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_phi))
        for (
            convolution
        ) in self.phi:  # phi starts as the identity, so that the first codes fit where they are used
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    @torch.no_grad()
    def points(self, latents: Tensor, rounded: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """What each scale has to approximate: (B * side * side, C) of every scale.

        `rounded` returns the codes of a scale's points; what they miss is left to the scales after it.
        """
        points, rest = [], latents
        with without_autocast(latents):
            for scale, side in enumerate(self.scales):
                points.append(area_means(rest, side).flatten(0, 1))
                codes = rounded(points[-1]).view(len(latents), side * side, -1)
                rest = rest - self.part(scale, codes)
        return points

    def sums(self, codes: Tensor) -> list[Tensor]:
        """The latents after each scale (B, C, h, h) from the codes of all scales, or of the first ones (B, L, C)."""
        lengths, total, sums = [], 0, []
        for side in self.scales:
            if sum(lengths) < codes.shape[1]:
                lengths.append(side * side)
        with without_autocast(codes):
            for scale, grid in enumerate(codes.split(lengths, dim=1)):
                total = total + self.part(scale, grid)
                sums.append(total)
        return sums

    def phi_of(self, scale: int) -> int:
        """Which convolution a scale uses: of places spread over [0, 1], the one nearest to the scale's own."""
        count = len(self.phi)
        # VAR's code makes an exception for four. Some scales are halfway between two places, so rounding decides:
        # this is the same arithmetic as there
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        places = np.linspace(margin, 1 - margin, count)
        return int(np.abs(places - scale / max(1, len(self.scales) - 1)).argmin())

    def part(self, scale: int, codes: Tensor) -> Tensor:
        """What the codes of a scale (B, side * side, C) add to the latents (B, C, h, h)."""
        side, full = self.scales[scale], self.scales[-1]
        grid = codes.transpose(1, 2).unflatten(2, (side, side))
        if side < full:
            grid = functional.interpolate(grid, size=(full, full), mode="bicubic")
        return (1 - PHI_SHARE) * grid + PHI_SHARE * self.phi[self.phi_of(scale)](grid)


def area_means(latents: Tensor, side: int) -> Tensor:
    """The means of side * side areas of latents (B, C, h, h): (B, side * side, C), in raster order."""
    grid = functional.interpolate(latents, size=(side, side), mode="area")
    return grid.permute(0, 2, 3, 1).flatten(1, 2)
