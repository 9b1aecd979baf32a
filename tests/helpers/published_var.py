"""Weights with the names and shapes of VAR's published tokenizer, and its forward pass."""

import re

import torch
from torch import Tensor

from tests.helpers import multi_scale_reference, published_vqgan
from tests.helpers.published_vqgan import Sizes, Weights, convolve
from tests.helpers.tiny_models import rng

NUM_PHI = 4
SMALL, SMALL_SCALES = Sizes(vocab=24, code_width=8, latent_width=8), (1, 2, 3, 4)
PUBLISHED = Sizes(4096, 32, 160, (1, 1, 2, 2, 4), 32, 2)


def shapes(sizes: Sizes = SMALL, num_scales: int = len(SMALL_SCALES)) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the published state dict."""
    found = {}
    for name, shape in published_vqgan.shapes("taming", sizes).items():
        if re.search(r"\.[kv]\.(weight|bias)$", name):
            continue
        if re.search(r"\.q\.(weight|bias)$", name):
            name, shape = name.replace(".q.", ".qkv."), (3 * shape[0], *shape[1:])
        if name.endswith("quant_conv.weight"):  # post_quant_conv too
            shape = (*shape[:2], 3, 3)
        found[name] = shape
    width = sizes.code_width
    for number in range(NUM_PHI):
        phi = f"quantize.quant_resi.qresi_ls.{number}"
        found |= {f"{phi}.weight": (width, width, 3, 3), f"{phi}.bias": (width,)}
    return found | {"quantize.ema_vocab_hit_SV": (num_scales, sizes.vocab)}


def random_weights(seed: int = 0) -> Weights:
    """As those of published_vqgan, with codes small enough for coarse scales."""
    generator, weights = rng(seed), {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            weights[name] = noise / (shape[1] * shape[2] * shape[3]) ** 0.5
        else:
            is_norm = name.endswith("weight") and "norm" in name
            weights[name] = noise / (2 if "embedding" in name else 10) + is_norm
    return weights


def as_taming(weights: Weights) -> Weights:
    """The same weights with query, key and value as three tensors."""
    parts = {}
    for name in [name for name in weights if ".qkv." in name]:
        for part, third in zip("qkv", weights[name].chunk(3), strict=True):
            parts[name.replace("qkv", part)] = third
    return weights | parts


def kernels(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    names = [f"quantize.quant_resi.qresi_ls.{number}" for number in range(NUM_PHI)]
    return [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]


def encode(images: Tensor, weights: Weights) -> tuple[Tensor, list[Tensor]]:
    """(tokens (B, L), the latents after each scale), from images (B, 3, H, W) in [0, 1]."""
    x = published_vqgan.encoder_pass(images, as_taming(weights), "taming", SMALL)
    latents = convolve(x, weights, "quant_conv", padding=1)
    codes = weights["quantize.embedding.weight"]
    return multi_scale_reference.quantize(latents, codes, kernels(weights), SMALL_SCALES)


def decode(total: Tensor, weights: Weights) -> Tensor:
    """The latents after the last scale (B, C, h, w) -> images (B, 3, H, W) in [0, 1]."""
    x = convolve(total.float(), weights, "post_quant_conv", padding=1)
    return published_vqgan.decoder_pass(x, as_taming(weights), "taming", SMALL)
