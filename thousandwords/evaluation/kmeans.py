"""K-means over raw image patches: the baseline of an image tokenizer.

A codebook of square patches needs no network: cut the image into a grid and replace each cell by its nearest
centroid. A tokenizer with the same grid and vocabulary that reconstructs worse than this has learned nothing.
Initialized by k-means++ on a subset (Arthur and Vassilvitskii 2007), then Lloyd's iterations. Patches are
rows (N, D), D = 3 * patch * patch; centroids are (V, D).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS_AT_ONCE = 16384  # bounds the (rows, V) distance table
PATCHES_PER_CENTROID = 32  # that k-means++ looks at


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Cut images (B, 3, H, W) into patches (B * L, D), in raster order."""
    return functional.pixel_unshuffle(images, patch).permute(0, 2, 3, 1).flatten(0, 2)


def images_of(patches: Tensor, patch: int, grid: int) -> Tensor:
    """Undo `patches_of` for a square grid: (B * L, D) -> (B, 3, grid * patch, grid * patch)."""
    cells = patches.view(-1, grid, grid, patches.shape[1]).permute(0, 3, 1, 2)
    return functional.pixel_shuffle(cells, patch)


def nearest_centroid(patches: Tensor, centroids: Tensor) -> Tensor:
    """The index of the nearest centroid of each patch: (N, D), (V, D) -> (N,) int64."""
    squares = centroids.square().sum(dim=1)
    chunks = patches.split(ROWS_AT_ONCE)
    return torch.cat([torch.addmm(squares, rows, centroids.T, alpha=-2).argmin(dim=1) for rows in chunks])


def fit_kmeans(patches: Tensor, vocab_size: int, rng: torch.Generator, iterations: int) -> Tensor:
    """Fit `vocab_size` centroids, the same for the same rng: patches (N, D) -> (V, D)."""
    if len(patches) < vocab_size:
        raise ValueError(
            f"k-means has {len(patches)} patches for {vocab_size} centroids; give it more images "
            "or a smaller vocabulary"
        )
    centroids = init_plus_plus(patches, vocab_size, rng)
    for _ in range(iterations):
        centroids = lloyd_step(patches, centroids, rng)
    return centroids


def init_plus_plus(patches: Tensor, vocab_size: int, rng: torch.Generator) -> Tensor:
    """k-means++: initial centroids, each a patch sampled in proportion to its squared distance from those
    before it."""
    pool = patches[random_rows(len(patches), min(len(patches), vocab_size * PATCHES_PER_CENTROID), rng)]
    distance = torch.full((len(pool),), float("inf"), device=pool.device)
    centroids = pool[:1]
    for _ in range(vocab_size - 1):
        distance = torch.minimum(distance, (pool - centroids[-1]).square().sum(dim=1))
        # the small constant keeps sampling possible when every patch is a centroid already
        row = torch.multinomial(distance + 1e-12, 1, generator=rng)
        centroids = torch.cat([centroids, pool[row]])
    return centroids


def lloyd_step(patches: Tensor, centroids: Tensor, rng: torch.Generator) -> Tensor:
    """One iteration of Lloyd's algorithm; a centroid without patches moves to a random patch."""
    codes = nearest_centroid(patches, centroids)
    counts = torch.bincount(codes, minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add_(0, codes, patches)
    random_patches = patches[random_rows(len(patches), len(centroids), rng)]
    return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], random_patches)


def random_rows(total: int, count: int, rng: torch.Generator) -> Tensor:
    """`count` different row indices below `total`, on the rng's device."""
    return torch.randperm(total, generator=rng, device=rng.device)[:count]


def kmeans_encode(images: Tensor, centroids: Tensor, patch: int) -> Tensor:
    """Encode images (B, 3, H, W) to the nearest centroid of each cell: codes (B, L) int64 in raster order."""
    return nearest_centroid(patches_of(images, patch), centroids).view(len(images), -1)


def kmeans_reconstruct(images: Tensor, centroids: Tensor, patch: int) -> Tensor:
    """Replace each cell of images (B, 3, H, W) by its nearest centroid: (B, 3, H, W)."""
    codes = kmeans_encode(images, centroids, patch)
    return images_of(centroids[codes.flatten()], patch, images.shape[2] // patch)
