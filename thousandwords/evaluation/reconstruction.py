"""How well the image tokenizer reconstructs held-out images, beside a codebook that needs no network.

The baseline cuts images into square patches and replaces each by the nearest of as many k-means centroids as
the tokenizer has tokens (faiss, from k-means++). A tokenizer with the same grid that reconstructs worse has
learned nothing. Arrays in, dicts out.
"""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords.data.sampler import sequential_batches
from thousandwords.evaluation.features import scorer_extractor
from thousandwords.evaluation.fid import frechet_distance
from thousandwords.evaluation.image_fidelity import embed
from thousandwords.evaluation.metrics import with_interval
from thousandwords.nn.metrics import codebook_counts, codebook_usage, psnr


@dataclass(frozen=True)
class Reconstructions:
    """Held-out images decoded from their arg-max tokens, beside a k-means codebook of the same size."""

    hard: Tensor  # (B, 3, H, W)
    psnr_hard: Tensor  # (B,) dB
    psnr_kmeans: Tensor
    tokens: Tensor  # (B, L)
    kmeans_tokens: Tensor
    vocab_size: int
    decoded: Tensor | None = None  # (B, 3, H, W) by the decoder, if there is one

    def psnr(self, seed: int) -> dict:
        """The block `reconstruction` of metrics.json: means over images, and their intervals."""
        return {
            **with_interval("psnr_hard", self.psnr_hard.numpy(), seed),
            **with_interval("psnr_kmeans", self.psnr_kmeans.numpy(), seed),
        }

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each token occurs, (V,), of the tokenizer and of k-means."""
        tokens = (self.tokens, self.kmeans_tokens)
        return tuple(codebook_counts(each, self.vocab_size).numpy() for each in tokens)

    def codebook(self) -> dict:
        """The block `codebook` of metrics.json."""
        baseline = codebook_usage(self.kmeans_tokens, self.vocab_size)
        return {
            **codebook_usage(self.tokens, self.vocab_size),
            "vocab_size": self.vocab_size,
            "perplexity_kmeans": baseline["perplexity"],
            "used_kmeans": baseline["used"],
        }


@torch.no_grad()
def reconstruct(
    tokenizer: nn.Module,
    held_out: Tensor,
    training: Tensor,
    iterations: int,
    seed: int,
    decoder: nn.Module | None = None,
) -> Reconstructions:
    """Reconstruct held_out (B, 3, H, W) through hard tokens, and through k-means over patches of `training`
    as large as a cell of the tokenizer's (finest) grid; and by a `decoder`, if there is one."""
    batches = list(sequential_batches(len(held_out), tokenizer.max_batch_size))
    tokens = torch.cat([tokenizer.encode(held_out[rows]) for rows in batches])
    hard = torch.cat([tokenizer.decode(tokens[rows]) for rows in batches])
    decoded = torch.cat([decoder.decode(tokens[rows], hard[rows]) for rows in batches]) if decoder else None
    patch = tokenizer.image_size // max(tokenizer.scales)
    kmeans = fit_kmeans(patches_of(training, patch), tokenizer.vocab_size, iterations, seed)
    kmeans_tokens, kmeans_images = kmeans_reconstruct(kmeans, held_out, patch)
    psnrs = psnr(held_out, hard), psnr(held_out, kmeans_images)
    return Reconstructions(hard, *psnrs, tokens, kmeans_tokens, tokenizer.vocab_size, decoded)


def decoder_figures(reconstructions: Reconstructions, images: Tensor, scorer: nn.Module, seed: int) -> dict:
    """The block `decoder` of metrics.json for held-out images (B, 3, H, W): PSNR in dB, and sharpness and the Fréchet
    distance to these images by the scorer's features, each also of the tokenizer's own reconstructions."""

    def features(batch: Tensor) -> Tensor:
        return embed(scorer_extractor(scorer), batch.__getitem__, len(batch))[0][0]

    figures = with_interval("psnr_hard", psnr(images, reconstructions.decoded).numpy(), seed)
    real = features(images)
    for name, decoded in (("", reconstructions.decoded), ("_tokenizer", reconstructions.hard)):
        figures[f"sharpness{name}"] = sharpness(decoded) / sharpness(images)
        if len(images) > 1:
            figures[f"clip_frechet{name}"] = frechet_distance(features(decoded), real)
    return figures


def sharpness(images: Tensor) -> float:
    """The mean absolute difference of neighboring pixels of images (B, 3, H, W), in the images' unit."""
    across, down = images.diff(dim=3).abs().mean(), images.diff(dim=2).abs().mean()
    return float(across + down) / 2


def fit_kmeans(patches: Tensor, vocab_size: int, iterations: int, seed: int) -> faiss.Kmeans:
    """Fit `vocab_size` centroids to patches (N, D); the same for the same seed."""
    if len(patches) < vocab_size:
        raise ValueError(
            f"k-means has {len(patches)} patches for {vocab_size} centroids; give it more images "
            "or a smaller vocabulary"
        )
    kmeans = faiss.Kmeans(
        patches.shape[1],
        vocab_size,
        niter=iterations,
        seed=seed,
        # random patches lose 1 dB: most cells of the scenes are plain
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,
        max_points_per_centroid=len(patches),
    )
    kmeans.train(patches.numpy())
    return kmeans


def kmeans_reconstruct(kmeans: faiss.Kmeans, images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each cell of images (B, 3, H, W): its number (B, L) in raster order, and the
    images made of the centroids."""
    _, tokens = kmeans.assign(patches_of(images, patch).numpy())  # (B * L,)
    cells = torch.from_numpy(kmeans.centroids[tokens]).view(
        len(images), images.shape[2] // patch, -1, kmeans.d
    )
    rebuilt = functional.pixel_shuffle(cells.movedim(3, 1), patch)
    return torch.from_numpy(tokens).view(len(images), -1), rebuilt


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Cut images (B, 3, H, W) into patches (B * L, 3 * patch * patch), in raster order."""
    return functional.pixel_unshuffle(images, patch).permute(0, 2, 3, 1).flatten(0, 2)
