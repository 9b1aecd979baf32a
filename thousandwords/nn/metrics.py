"""Metrics of tensors: PSNR, codebook usage, also scale by scale, top-1 accuracy."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

SMALLEST_ERROR = 1e-10  # equal images count as 100 dB, not as infinity


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of each image: a and b (B, 3, H, W) in [0, 1] -> (B,). Their mean is a data set's PSNR."""
    a, b = (torch.as_tensor(images).detach().cpu().double() for images in (a, b))
    _check_images(a, b)
    error = (a - b).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=SMALLEST_ERROR).log10()


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """The mean over images of each image's PSNR, in dB."""
    return psnr(a, b).mean().item()


def _check_images(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[0] == 0:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"psnr expects two batches (B, 3, H, W) of the same shape; found {shapes}")
    low, high = (bound.item() for bound in torch.stack((a, b)).aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # written so that NaN is rejected too
        raise ValueError(
            f"psnr expects images in [0, 1]; found values from {low:g} to {high:g}: divide bytes by 255 first"
        )


def codebook_counts(tokens: Tensor, vocab_size: int) -> Tensor:
    """How often each token occurs: tokens, any shape -> (V,). codebook_counts([0, 2], 4) -> [1, 0, 1, 0]."""
    tokens = torch.as_tensor(tokens).detach().cpu().long().flatten()
    if tokens.numel() == 0:
        raise ValueError("codebook usage needs at least one token; is the validation split empty?")
    low, high = tokens.min().item(), tokens.max().item()
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"image tokens run from {low} to {high}, outside a codebook of {vocab_size} entries; "
            "were they written by another tokenizer?"
        )
    return torch.bincount(tokens, minlength=vocab_size)


def codebook_usage(tokens: Tensor, vocab_size: int) -> dict[str, float | int]:
    """Share and number of codebook entries in use; perplexity exp(entropy), V if all are used equally."""
    counts = codebook_counts(tokens, vocab_size).double()
    share = counts[counts > 0] / counts.sum()
    perplexity = (-(share * share.log()).sum()).exp().item()
    return {"used": len(share) / vocab_size, "used_words": len(share), "perplexity": perplexity}


def figures_by_scale(tokenizer: nn.Module, images: Tensor, tokens: Tensor) -> dict[int, dict[str, float]]:
    """{side of a grid: PSNR of the images after it in dB, codebook usage in it}, from the tokens (B, L) of images
    (B, 3, H, W); empty for a tokenizer with one grid."""
    if len(tokenizer.scales) == 1:
        return {}
    batches, device = tokens.split(tokenizer.max_batch_size), next(tokenizer.parameters()).device
    decoded = zip(*(tokenizer.images_so_far(batch.to(device)) for batch in batches), strict=True)
    grids = tokens.split([side * side for side in tokenizer.scales], dim=1)
    return {
        side: {"psnr": mean_psnr(images, torch.cat(after)), **codebook_usage(grid, tokenizer.vocab_size)}
        for side, after, grid in zip(tokenizer.scales, decoded, grids, strict=True)
    }


def top1(similarity: ArrayLike) -> float:
    """Share of images nearest to their own caption: similarity (B, B), pairs on the diagonal -> 0..1.

    A tie counts as its share, so a constant scorer gets 1 / B.
    """
    similarity = np.asarray(similarity)
    nearest = similarity == similarity.max(axis=1, keepdims=True)
    return float((nearest.diagonal() / nearest.sum(axis=1)).mean())
