"""K-means over raw image patches: the yardstick of an image tokenizer, and the dVAE's warm start.

A codebook of square patches needs no network: cut the picture into a grid, replace each cell by its nearest
centroid. Any tokenizer of the same grid and vocabulary that draws worse than this has learned nothing.
Seeding is k-means++ on a subset (Arthur and Vassilvitskii 2007); then Lloyd's iterations. Patches are
(N, D) rows, D = 3 * patch * patch; centroids are (V, D).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS_AT_ONCE = 16384  # bounds the (rows, V) distance table
ROWS_PER_SEED = 32  # seeding looks at this many patches per centroid


def patches_of(images: Tensor, patch: int) -> Tensor:
    """The cells of every picture: images (B, 3, H, W) -> (B * L, D), cells in raster order."""
    return functional.pixel_unshuffle(images, patch).permute(0, 2, 3, 1).flatten(0, 2)


def images_of(patches: Tensor, patch: int, grid: int) -> Tensor:
    """Undoes `patches_of` for a square grid: (B * L, D) -> (B, 3, grid * patch, grid * patch)."""
    cells = patches.view(-1, grid, grid, patches.shape[1]).permute(0, 3, 1, 2)
    return functional.pixel_shuffle(cells, patch)


def nearest_centroid(patches: Tensor, centroids: Tensor) -> Tensor:
    """The number of the centroid closest to each patch: (N, D), (V, D) -> (N,) int64."""
    squares = centroids.square().sum(dim=1)
    chunks = patches.split(ROWS_AT_ONCE)
    return torch.cat([torch.addmm(squares, rows, centroids.T, alpha=-2).argmin(dim=1) for rows in chunks])


def fit_kmeans(patches: Tensor, vocab_size: int, rng: torch.Generator, iterations: int) -> Tensor:
    """The centroids of `vocab_size` clusters, the same for the same rng: patches (N, D) -> (V, D)."""
    if len(patches) < vocab_size:
        raise ValueError(
            f"k-means was given {len(patches)} patches for {vocab_size} centroids; show it more images "
            "or ask for a smaller vocabulary"
        )
    centroids = spread_seeds(patches, vocab_size, rng)
    for _ in range(iterations):
        centroids = move_to_means(patches, centroids, rng)
    return centroids


def spread_seeds(patches: Tensor, vocab_size: int, rng: torch.Generator) -> Tensor:
    """First centroids, each a patch drawn in proportion to its squared distance from those before it."""
    pool = patches[random_rows(len(patches), min(len(patches), vocab_size * ROWS_PER_SEED), rng)]
    distance = torch.full((len(pool),), float("inf"), device=pool.device)
    seeds = pool[:1]
    for _ in range(vocab_size - 1):
        distance = torch.minimum(distance, (pool - seeds[-1]).square().sum(dim=1))
        # the small floor keeps the draw possible when every patch is a centroid already
        chosen = torch.multinomial(distance + 1e-12, 1, generator=rng)
        seeds = torch.cat([seeds, pool[chosen]])
    return seeds


def move_to_means(patches: Tensor, centroids: Tensor, rng: torch.Generator) -> Tensor:
    """One of Lloyd's iterations; a centroid that no patch chose starts again at a random patch."""
    codes = nearest_centroid(patches, centroids)
    counts = torch.bincount(codes, minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add_(0, codes, patches)
    strays = patches[random_rows(len(patches), len(centroids), rng)]
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], strays)


def random_rows(total: int, count: int, rng: torch.Generator) -> Tensor:
    """`count` different row numbers below `total`, on the rng's device."""
    return torch.randperm(total, generator=rng, device=rng.device)[:count]


def kmeans_encode(images: Tensor, centroids: Tensor, patch: int) -> Tensor:
    """The nearest centroid of every cell: images (B, 3, H, W) -> codes (B, L) int64, raster order."""
    return nearest_centroid(patches_of(images, patch), centroids).view(len(images), -1)


def kmeans_reconstruct(images: Tensor, centroids: Tensor, patch: int) -> Tensor:
    """The images with each cell replaced by its nearest centroid: (B, 3, H, W) -> (B, 3, H, W)."""
    codes = kmeans_encode(images, centroids, patch)
    return images_of(centroids[codes.flatten()], patch, images.shape[2] // patch)
