"""Weights with the names and shapes of VAR's published tokenizer, and its forward pass."""

import re

import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers import multi_scale_reference, published_vqgan
from tests.helpers.published_vqgan import Sizes, Weights, convolve, normed, swish
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
        fan_in = shape[1] * shape[2] * shape[3] if len(shape) == 4 else 1
        is_norm = name.endswith("weight") and "norm" in name
        weights[name] = (
            noise / fan_in**0.5 if len(shape) == 4 else noise / (2 if "embedding" in name else 10) + is_norm
        )
    return weights


def as_taming(weights: Weights) -> Weights:
    """The same weights with query, key and value as three tensors."""
    parts = {}
    for name, value in weights.items():
        if ".qkv." in name:
            parts |= {
                name.replace("qkv", part): third for part, third in zip("qkv", value.chunk(3), strict=True)
            }
    return weights | parts


def kernels(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    names = [f"quantize.quant_resi.qresi_ls.{number}" for number in range(NUM_PHI)]
    return [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]


def latents(images: Tensor, weights: Weights) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> (B, C, h, w)."""
    weights, levels = as_taming(weights), len(SMALL.multipliers)
    x = convolve(images * 2 - 1, weights, "encoder.conv_in", padding=1)
    for index in range(levels):
        x = published_vqgan.level_pass(x, weights, f"encoder.down.{index}", "taming", SMALL.blocks)
        if index < levels - 1:
            x = functional.pad(x, (0, 1, 0, 1))
            x = convolve(x, weights, f"encoder.down.{index}.downsample.conv", stride=2)
    x = swish(
        normed(published_vqgan.middle_pass(x, weights, "encoder", "taming"), weights, "encoder.norm_out")
    )
    return convolve(convolve(x, weights, "encoder.conv_out", padding=1), weights, "quant_conv", padding=1)


def encode(images: Tensor, weights: Weights) -> tuple[Tensor, list[Tensor]]:
    """(tokens (B, L), the latents after each scale), from images (B, 3, H, W) in [0, 1]."""
    codes = weights["quantize.embedding.weight"]
    return multi_scale_reference.quantize(latents(images, weights), codes, kernels(weights), SMALL_SCALES)


def decode(total: Tensor, weights: Weights) -> Tensor:
    """The latents after the last scale (B, C, h, w) -> images (B, 3, H, W) in [0, 1]."""
    weights = as_taming(weights)
    x = convolve(total.float(), weights, "post_quant_conv", padding=1)
    x = convolve(x, weights, "decoder.conv_in", padding=1)
    x = published_vqgan.middle_pass(x, weights, "decoder", "taming")
    for index in reversed(range(len(SMALL.multipliers))):
        x = published_vqgan.level_pass(x, weights, f"decoder.up.{index}", "taming", SMALL.blocks + 1)
        if index > 0:
            doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = convolve(doubled, weights, f"decoder.up.{index}.upsample.conv", padding=1)
    x = convolve(swish(normed(x, weights, "decoder.norm_out")), weights, "decoder.conv_out", padding=1)
    return (x.clamp(-1, 1) + 1) / 2
