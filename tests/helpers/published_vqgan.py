"""Weights with the names and shapes that taming-transformers and LlamaGen published, and their forward pass.

Written from the published layouts with torch's functions only, so that names and results of our models have
something to be compared with.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers.tiny_models import rng

Weights = dict[str, Tensor]
LAYOUTS = ("taming", "llamagen")
CONV_BLOCKS = dict.fromkeys(("encoder", "decoder"), "conv_blocks")
LEVELS = {"taming": {"encoder": "down", "decoder": "up"}, "llamagen": CONV_BLOCKS}
BLOCK = {"taming": "block", "llamagen": "res"}
MIDDLE = {"taming": ("block_1", "attn_1", "block_2"), "llamagen": ("0", "1", "2")}
GROUPS = 32


@dataclass(frozen=True)
class Sizes:
    """The defaults are small; one channel in each of the 32 groups is the least."""

    vocab: int = 24
    code_width: int = 6
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    latent_width: int = 12
    blocks: int = 1
    is_gumbel: bool = False


F16 = {"width": 128, "multipliers": (1, 1, 2, 2, 4), "latent_width": 256, "blocks": 2}
F8, GUMBEL_F8 = F16 | {"multipliers": (1, 2, 2, 4)}, F16 | {"multipliers": (1, 1, 2, 4)}
# layout, sizes, tensors with LlamaGen's buffer, numbers in them
PUBLISHED = {
    "taming f16-1024": ("taming", Sizes(1024, 256, **F16), 343, 72_141_699),
    "taming f16-16384": ("taming", Sizes(16_384, 256, **F16), 343, 76_073_859),
    "taming Gumbel f8": ("taming", Sizes(8192, 256, **GUMBEL_F8, is_gumbel=True), 301, 68_995_971),
    "LlamaGen VQ-16": ("llamagen", Sizes(16_384, 8, **F16), 344, 71_948_939),
    "LlamaGen VQ-8": ("llamagen", Sizes(16_384, 8, **F8), 300, 70_175_371),
}


def level(layout: str, half: str, index: int, levels: int) -> str:
    """Where level `index`, 0 the finest, is: LlamaGen's decoder counts from the coarsest."""
    if layout == "llamagen" and half == "decoder":
        index = levels - 1 - index
    return f"{half}.{LEVELS[layout][half]}.{index}"


def shapes(layout: str, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """{name: shape} of everything in a published state dict that belongs to the tokenizer."""
    found: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int) -> None:
        found.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def add_block(name: str, inputs: int, outputs: int) -> None:
        add(f"{name}.norm1", inputs)
        add(f"{name}.conv1", outputs, inputs, 3, 3)
        add(f"{name}.norm2", outputs)
        add(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            add(f"{name}.nin_shortcut", outputs, inputs, 1, 1)

    def add_attention(name: str, channels: int) -> None:
        add(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", channels, channels, 1, 1)

    def add_levels(half: str, order: list[int], inputs: int, blocks: int, resize: str) -> None:
        for index in order:
            name = level(layout, half, index, len(widths))
            for block in range(blocks):
                add_block(f"{name}.{BLOCK[layout]}.{block}", inputs, widths[index])
                inputs = widths[index]
                if index == len(widths) - 1:
                    add_attention(f"{name}.attn.{block}", inputs)
            if index != order[-1]:
                add(f"{name}.{resize}.conv", inputs, inputs, 3, 3)

    widths = [sizes.width * multiplier for multiplier in sizes.multipliers]
    finest_first = list(range(len(widths)))
    add("encoder.conv_in", sizes.width, 3, 3, 3)
    add_levels("encoder", finest_first, sizes.width, sizes.blocks, "downsample")
    add("encoder.norm_out", widths[-1])
    add("encoder.conv_out", sizes.latent_width, widths[-1], 3, 3)
    add("quant_conv", sizes.code_width, sizes.latent_width, 1, 1)
    if sizes.is_gumbel:
        add("quantize.proj", sizes.vocab, sizes.code_width, 1, 1)
    found[f"quantize.{'embed' if sizes.is_gumbel else 'embedding'}.weight"] = (sizes.vocab, sizes.code_width)
    if layout == "llamagen":
        found["quantize.codebook_used"] = (65_536,)
    add("post_quant_conv", sizes.latent_width, sizes.code_width, 1, 1)
    add("decoder.conv_in", widths[-1], sizes.latent_width, 3, 3)
    add_levels("decoder", finest_first[::-1], widths[-1], sizes.blocks + 1, "upsample")
    add("decoder.norm_out", widths[0])
    add("decoder.conv_out", 3, widths[0], 3, 3)
    for half in ("encoder", "decoder"):
        first, attention, second = (f"{half}.mid.{part}" for part in MIDDLE[layout])
        add_block(first, widths[-1], widths[-1])
        add_attention(attention, widths[-1])
        add_block(second, widths[-1], widths[-1])
    return found


def random_weights(layout: str, sizes: Sizes = Sizes(), seed: int = 0) -> Weights:
    """Kernels that keep the size of what they see, norms around 1, biases around 0."""
    generator, weights = rng(seed), {}
    for name, shape in shapes(layout, sizes).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            weights[name] = noise / (shape[1] * shape[2] * shape[3]) ** 0.5
        elif "embed" in name:
            weights[name] = noise
        else:
            weights[name] = noise / 10 + (name.endswith("weight") and "norm" in name)
    return weights


# --- the forward pass -------------------------------------------------------------------------------------------------


def convolve(x: Tensor, weights: Weights, name: str, **settings: int) -> Tensor:
    return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **settings)


def normed(x: Tensor, weights: Weights, name: str) -> Tensor:
    return functional.group_norm(x, GROUPS, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def block(x: Tensor, weights: Weights, name: str) -> Tensor:
    y = convolve(swish(normed(x, weights, f"{name}.norm1")), weights, f"{name}.conv1", padding=1)
    y = convolve(swish(normed(y, weights, f"{name}.norm2")), weights, f"{name}.conv2", padding=1)
    shortcut = f"{name}.nin_shortcut"
    return y + (convolve(x, weights, shortcut) if f"{shortcut}.weight" in weights else x)


def attention(x: Tensor, weights: Weights, name: str) -> Tensor:
    y = normed(x, weights, f"{name}.norm")
    q, k, v = (convolve(y, weights, f"{name}.{part}").flatten(2) for part in "qkv")  # (B, C, h * w)
    shares = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / x.shape[1] ** 0.5, dim=-1)
    mixed = torch.einsum("bij,bcj->bci", shares, v).reshape(x.shape)
    return x + convolve(mixed, weights, f"{name}.proj_out")


def level_pass(x: Tensor, weights: Weights, name: str, layout: str, blocks: int) -> Tensor:
    for index in range(blocks):
        x = block(x, weights, f"{name}.{BLOCK[layout]}.{index}")
        if f"{name}.attn.{index}.q.weight" in weights:
            x = attention(x, weights, f"{name}.attn.{index}")
    return x


def middle_pass(x: Tensor, weights: Weights, half: str, layout: str) -> Tensor:
    first, between, second = (f"{half}.mid.{part}" for part in MIDDLE[layout])
    return block(attention(block(x, weights, first), weights, between), weights, second)


def codes(weights: Weights, layout: str) -> Tensor:
    """The vectors of the tokens: of unit length in LlamaGen."""
    embedding = weights.get("quantize.embed.weight", weights.get("quantize.embedding.weight"))
    return embedding / embedding.norm(dim=1, keepdim=True) if layout == "llamagen" else embedding


def encoder_pass(images: Tensor, weights: Weights, layout: str, sizes: Sizes) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> what `quant_conv` sees (B, C, h, w)."""
    x, levels = convolve(images * 2 - 1, weights, "encoder.conv_in", padding=1), len(sizes.multipliers)
    for index in range(levels):
        name = level(layout, "encoder", index, levels)
        x = level_pass(x, weights, name, layout, sizes.blocks)
        if index < levels - 1:
            x = convolve(functional.pad(x, (0, 1, 0, 1)), weights, f"{name}.downsample.conv", stride=2)
    x = swish(normed(middle_pass(x, weights, "encoder", layout), weights, "encoder.norm_out"))
    return convolve(x, weights, "encoder.conv_out", padding=1)


def decoder_pass(x: Tensor, weights: Weights, layout: str, sizes: Sizes) -> Tensor:
    """What `post_quant_conv` gives (B, C, h, w) -> images (B, 3, H, W) in [0, 1]."""
    x, levels = convolve(x, weights, "decoder.conv_in", padding=1), len(sizes.multipliers)
    x = middle_pass(x, weights, "decoder", layout)
    for index in reversed(range(levels)):
        name = level(layout, "decoder", index, levels)
        x = level_pass(x, weights, name, layout, sizes.blocks + 1)
        if index > 0:
            doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = convolve(doubled, weights, f"{name}.upsample.conv", padding=1)
    x = convolve(swish(normed(x, weights, "decoder.norm_out")), weights, "decoder.conv_out", padding=1)
    return (x.clamp(-1, 1) + 1) / 2


def encode(images: Tensor, weights: Weights, layout: str, sizes: Sizes = Sizes()) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> tokens (B, L)."""
    x = convolve(encoder_pass(images, weights, layout, sizes), weights, "quant_conv")
    if sizes.is_gumbel:
        return convolve(x, weights, "quantize.proj").flatten(2).argmax(dim=1)
    vectors = x.flatten(2).transpose(1, 2)  # (B, L, W)
    if layout == "llamagen":
        vectors = vectors / vectors.norm(dim=2, keepdim=True)
    return (vectors[:, :, None] - codes(weights, layout)).square().sum(dim=3).argmin(dim=2)


def decode(tokens: Tensor, weights: Weights, layout: str, sizes: Sizes = Sizes()) -> Tensor:
    """Tokens (B, L) -> images (B, 3, H, W) in [0, 1]."""
    side = int(tokens.shape[1] ** 0.5)
    vectors = codes(weights, layout)[tokens].transpose(1, 2).reshape(len(tokens), -1, side, side)
    return decoder_pass(convolve(vectors, weights, "post_quant_conv"), weights, layout, sizes)


# --- the files --------------------------------------------------------------------------------------------------------


class ModelCheckpoint:
    """In place of Lightning's callback, whose class is a key of the checkpoint."""


def checkpoint(layout: str, weights: Weights) -> dict[str, object]:
    """What the trainers of both codebases saved, with what is not weights around them."""
    numbers = torch.rand(3, 2, generator=rng(9))
    if layout == "taming":
        score = {"best_model_score": numbers[0], "best_model_path": "last.ckpt", "monitor": None}
        loss = {"loss.discriminator.main.0.weight": numbers, "loss.discriminator.count": torch.tensor(7)}
        state = {"state": {0: {"step": 4, "exp_avg": numbers.clone()}}, "param_groups": [{}]}
        beside = {"epoch": 3, "callbacks": {ModelCheckpoint: score}, "optimizer_states": [state]}
        return {**beside, "lr_schedulers": [], "state_dict": weights | loss}
    return {
        "model": weights,
        "optimizer": {"state": {0: {"exp_avg": numbers.clone()}}, "param_groups": [{"betas": (0.9, 0.95)}]},
        "discriminator": {"main.0.weight": numbers},
        "steps": np.int64(3),
        "args": argparse.Namespace(vq_model="VQ-16", codebook_size=16_384),
    }


def write(path: Path, layout: str, weights: Weights, container: str = "zip") -> Path:
    torch.save(checkpoint(layout, weights), path, _use_new_zipfile_serialization=container == "zip")
    return path
