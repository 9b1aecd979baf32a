"""K-means over raw patches: the baseline of the image tokenizer."""

from __future__ import annotations

import pytest
import torch

from thousandwords.evaluation.kmeans import (
    fit_kmeans,
    images_of,
    kmeans_encode,
    kmeans_reconstruct,
    lloyd_step,
    nearest_centroid,
    patches_of,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_patches_are_cells_in_raster_order_and_can_be_put_back():
    images = torch.rand(2, 3, 8, 8, generator=rng())
    patches = patches_of(images, 4)
    assert patches.shape == (8, 48)
    assert torch.equal(patches[1].view(3, 4, 4), images[0, :, :4, 4:])
    assert torch.equal(images_of(patches, 4, grid=2), images)


def test_the_nearest_centroid_is_the_nearest_one():
    centroids = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    assert nearest_centroid(torch.tensor([[0.9, 1.2], [4.0, 4.0], [0.1, 0.3]]), centroids).tolist() == [
        1,
        2,
        0,
    ]


def test_three_tight_clusters_are_found():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    patches = (centers[:, None] + 0.1 * torch.randn(3, 50, 2, generator=rng())).flatten(0, 1)
    centroids = fit_kmeans(patches, 3, rng(), iterations=5)
    assert (torch.cdist(centers, centroids).amin(dim=1) < 0.2).all()


def test_the_same_rng_gives_the_same_centroids():
    patches = torch.rand(200, 12, generator=rng(5))
    first, again, other = (fit_kmeans(patches, 8, rng(seed), iterations=3) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_centroid_without_patches_moves_to_a_patch():
    patches = torch.tensor([[0.0], [1.0], [2.0]])
    moved = lloyd_step(patches, torch.tensor([[1.0], [99.0]]), rng())
    assert moved[0].item() == 1 and moved[1].item() in (0, 1, 2)


def test_more_iterations_never_lose_detail():
    images = torch.rand(16, 3, 8, 8, generator=rng())
    errors = []
    for iterations in (0, 1, 10):
        centroids = fit_kmeans(patches_of(images, 4), 8, rng(), iterations)
        errors.append((kmeans_reconstruct(images, centroids, 4) - images).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_reconstruction_is_exact_when_every_patch_is_a_centroid():
    images = torch.rand(2, 3, 8, 8, generator=rng())
    centroids = patches_of(images, 4)
    assert kmeans_encode(images, centroids, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert torch.equal(kmeans_reconstruct(images, centroids, 4), images)


def test_identical_patches_still_give_a_full_codebook():
    assert fit_kmeans(torch.zeros(20, 12), 4, rng(), iterations=2).shape == (4, 12)


def test_too_few_patches_are_rejected():
    with pytest.raises(ValueError, match="3 patches for 4 centroids; give it more images"):
        fit_kmeans(torch.rand(3, 12), 4, rng(), iterations=1)
