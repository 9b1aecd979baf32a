"""K-means over raw patches, the baseline of the image tokenizer; and the figures of a decoder."""

import pytest
import torch

from tests.helpers.tiny_models import rng, tiny
from thousandwords.evaluation import reconstruction
from thousandwords.evaluation.reconstruction import fit_kmeans, kmeans_reconstruct, patches_of

IMAGES = torch.rand(16, 3, 8, 8, generator=rng())


def test_a_reconstruction_is_exact_when_every_patch_is_a_centroid():
    tokens, images = kmeans_reconstruct(fit_kmeans(patches_of(IMAGES[:2], 4), 8, 3, 0), IMAGES[:2], 4)
    assert tokens.shape == (2, 4) and len(tokens.unique()) == 8
    torch.testing.assert_close(images, IMAGES[:2])


def test_more_iterations_lose_less_detail_and_the_same_seed_gives_the_same():
    def error(iterations: int, seed: int = 0) -> float:
        kmeans = fit_kmeans(patches_of(IMAGES, 4), 8, iterations, seed)
        return (kmeans_reconstruct(kmeans, IMAGES, 4)[1] - IMAGES).square().mean().item()

    assert error(1) > error(10) == error(10) != error(10, seed=1)


def test_identical_patches_still_give_a_full_codebook_and_too_few_are_rejected():
    assert fit_kmeans(torch.zeros(20, 12), 4, 2, 0).centroids.shape == (4, 12)
    with pytest.raises(ValueError, match="3 patches for 4 centroids; give it more images"):
        fit_kmeans(torch.rand(3, 12), 4, 1, 0)


def test_the_figures_of_a_decoder_are_those_of_its_images_beside_the_tokenizers():
    """A decoder that restores the images, and a tokenizer that halves their contrast."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens, psnrs = torch.zeros(8, 16, dtype=torch.int64), torch.zeros(8)
    found = reconstruction.Reconstructions(0.5 * images, psnrs, psnrs, tokens, tokens, 12, decoded=images)
    figures = reconstruction.decoder_figures(found, images, tiny("scorers", "clip"), seed=0)
    assert figures["psnr_hard"] == pytest.approx(100) and figures["sharpness"] == 1
    assert figures["sharpness_tokenizer"] == pytest.approx(0.5)
    assert figures["clip_frechet"] == pytest.approx(0, abs=1e-6) and figures["clip_frechet_tokenizer"] > 1e-5
