"""VAR's residual quantization (arXiv 2404.02905, algorithms 1 and 2), written with matrices and loops."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def area_means(side: int, full: int) -> Tensor:
    """(side, full): each row the mean over the positions that a cell of the smaller grid touches."""
    rows = torch.zeros(side, full, dtype=torch.float64)
    for row in range(side):
        start, end = math.floor(row * full / side), math.ceil((row + 1) * full / side)
        rows[row, start:end] = 1 / (end - start)
    return rows


def bicubic(side: int, full: int) -> Tensor:
    """(full, side): interpolation by the cubic kernel with a = -3/4, positions at the middles of cells."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    rows = torch.zeros(full, side, dtype=torch.float64)
    for row in range(full):
        place = (row + 0.5) * side / full - 0.5
        for column in range(math.floor(place) - 1, math.floor(place) + 3):
            rows[row, min(max(column, 0), side - 1)] += kernel(place - column)
    return rows


def nearest_place(scale: int, num_scales: int, num_phi: int) -> int:
    places = [(2 * number + 1) / (2 * num_phi) for number in range(num_phi)]
    if num_phi == 4:
        places = [1 / 12, 13 / 36, 23 / 36, 11 / 12]
    return min(range(num_phi), key=lambda number: abs(places[number] - scale / max(1, num_scales - 1)))


def part(codes: Tensor, kernels: list[tuple[Tensor, Tensor]], scale: int, scales: tuple[int, ...]) -> Tensor:
    """Codes (B, C, side, side) of a scale -> what they add to the latents (B, C, h, h)."""
    full = scales[-1]
    up = bicubic(scales[scale], full) if scales[scale] != full else torch.eye(full, dtype=torch.float64)
    grid = torch.einsum("yi,bcij,xj->bcyx", up, codes, up)
    kernel, bias = kernels[nearest_place(scale, len(scales), len(kernels))]
    return grid / 2 + functional.conv2d(grid, kernel, bias, padding=1) / 2


def quantize(
    latents: Tensor, codebook: Tensor, kernels: list[tuple[Tensor, Tensor]], scales: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """Latents (B, C, h, h) -> the tokens of all scales (B, L), and the latents after each of them; in float64."""
    rest, total, tokens, sums = latents.double(), 0, [], []
    codebook, kernels = codebook.double(), [(kernel.double(), bias.double()) for kernel, bias in kernels]
    for scale, side in enumerate(scales):
        down = area_means(side, scales[-1])
        points = torch.einsum("iy,bcyx,jx->bijc", down, rest, down).flatten(1, 2)
        tokens.append((points[:, :, None] - codebook).square().sum(dim=3).argmin(dim=2))
        codes = codebook[tokens[-1]].transpose(1, 2).unflatten(2, (side, side))
        added = part(codes, kernels, scale, scales)
        rest, total = rest - added, total + added
        sums.append(total)
    return torch.cat(tokens, dim=1), sums
