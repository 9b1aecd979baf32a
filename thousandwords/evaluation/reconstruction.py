"""How well the image tokenizer reconstructs held-out images, beside k-means. Arrays in, dicts out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thousandwords.core.rng import step_rng
from thousandwords.data.batching import sequential_batches
from thousandwords.evaluation.kmeans import fit_kmeans, kmeans_encode, kmeans_reconstruct, patches_of
from thousandwords.evaluation.metrics import with_interval
from thousandwords.nn.metrics import codebook_usage, psnr


@dataclass(frozen=True)
class Reconstructions:
    """Held-out images decoded from their arg-max tokens, beside a k-means codebook of the same size."""

    hard: Tensor  # (B, 3, H, W)
    psnr_hard: Tensor  # (B,) dB
    psnr_kmeans: Tensor
    tokens: Tensor  # (B, L)
    kmeans_tokens: Tensor
    vocab_size: int

    def psnr(self, seed: int) -> dict:
        """The block `reconstruction` of metrics.json: means over images, and their intervals."""
        return {
            **with_interval("psnr_hard", self.psnr_hard.numpy(), seed),
            **with_interval("psnr_kmeans", self.psnr_kmeans.numpy(), seed),
        }

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
    tokenizer: nn.Module, held_out: Tensor, training: Tensor, iterations: int, seed: int
) -> Reconstructions:
    """Reconstruct held_out (B, 3, H, W) through hard tokens, and through k-means over raw patches of
    `training`.

    The baseline has as many tokens as the tokenizer, and patches as large as a cell of its (finest) grid.
    """
    batch_size = tokenizer.max_batch_size
    tokens = torch.cat(
        [tokenizer.encode(held_out[rows]) for rows in sequential_batches(len(held_out), batch_size)]
    )
    hard = torch.cat([tokenizer.decode(tokens[rows]) for rows in sequential_batches(len(tokens), batch_size)])
    patch = tokenizer.image_size // max(tokenizer.scales)
    centroids = fit_kmeans(patches_of(training, patch), tokenizer.vocab_size, step_rng(seed, 0), iterations)
    kmeans = torch.cat(
        [
            kmeans_reconstruct(held_out[rows], centroids, patch)
            for rows in sequential_batches(len(held_out), 256)
        ]
    )
    return Reconstructions(
        hard=hard,
        psnr_hard=psnr(held_out, hard),
        psnr_kmeans=psnr(held_out, kmeans),
        tokens=tokens,
        kmeans_tokens=kmeans_encode(held_out, centroids, patch),
        vocab_size=tokenizer.vocab_size,
    )
