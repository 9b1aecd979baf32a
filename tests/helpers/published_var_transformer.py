"""Weights with the names and shapes of VAR's published transformers, and their forward pass.

Written from the published layout with torch's functions only. C width, H heads, L tokens of all scales.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import multi_scale_reference
from tests.helpers.published_var import SMALL, SMALL_SCALES
from tests.helpers.published_vqgan import Weights
from tests.helpers.tiny_models import rng

NUM_CLASSES, NUM_LAYERS, NUM_HEADS, WIDTH = 12, 2, 3, 24
LENGTH = sum(side * side for side in SMALL_SCALES)


def shapes(
    depth: int = NUM_LAYERS,
    heads: int = NUM_HEADS,
    width: int = WIDTH,
    classes: int = NUM_CLASSES,
    codes: tuple[int, int] = (SMALL.vocab, SMALL.code_width),
    scales: tuple[int, ...] = SMALL_SCALES,
) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the published state dict, all buffers included."""
    length = sum(side * side for side in scales)
    found = {"class_emb.weight": (classes + 1, width), "lvl_embed.weight": (len(scales), width)}
    found |= {"pos_start": (1, 1, width), "pos_1LC": (1, length, width), "lvl_1L": (1, length)}
    found |= {"attn_bias_for_masking": (1, 1, length, length)}
    maps = {
        "word_embed": (codes[1], width),
        "head_nm.ada_lin.1": (width, 2 * width),
        "head": (width, codes[0]),
    }
    for number in range(depth):
        block = f"blocks.{number}"
        found |= {f"{block}.attn.scale_mul_1H11": (1, heads, 1, 1)}
        found |= {f"{block}.attn.mat_qkv.weight": (3 * width, width)}
        found |= {f"{block}.attn.{name}": (width,) for name in ("q_bias", "v_bias", "zero_k_bias")}
        maps |= {f"{block}.attn.proj": (width, width), f"{block}.ada_lin.1": (width, 6 * width)}
        maps |= {f"{block}.ffn.fc1": (width, 4 * width), f"{block}.ffn.fc2": (4 * width, width)}
    for name, (inputs, outputs) in maps.items():
        found |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return found


def random_weights(seed: int = 0) -> Weights:
    generator, weights = rng(seed), {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=generator)
        is_matrix = len(shape) == 2 and not name.startswith(("class_emb", "lvl"))
        weights[name] = noise / shape[1] ** 0.5 if is_matrix else noise
        if name.endswith("zero_k_bias"):
            weights[name] = torch.zeros(shape)
    scale_of = torch.arange(len(SMALL_SCALES)).repeat_interleave(torch.tensor(SMALL_SCALES).square())
    weights["lvl_1L"] = scale_of[None]
    weights["attn_bias_for_masking"] = torch.where(scale_of[:, None] >= scale_of, 0.0, -torch.inf)[None, None]
    weights["blocks.1.attn.scale_mul_1H11"][0, 0] = 7.0  # above ln 100, where it is cut
    return weights


def logits(weights: Weights, classes: Tensor, tokens: Tensor, codebook: Tensor, kernels: list) -> Tensor:
    """Classes (B,), NUM_CLASSES for none, and tokens (B, L) -> the logits (B, L, V) of all tokens, in float64."""
    weights = {name: value.double() for name, value in weights.items() if name != "lvl_1L"}
    condition = weights["class_emb.weight"][classes]
    x = inputs(weights, condition, tokens, codebook.double(), [(a.double(), b.double()) for a, b in kernels])
    levels = torch.cat([torch.full((side * side,), scale) for scale, side in enumerate(SMALL_SCALES)])
    x = x + weights["lvl_embed.weight"][levels] + weights["pos_1LC"]
    for number in range(NUM_LAYERS):
        x = block_pass(x, condition, weights, f"blocks.{number}")
    scale, shift = adaptive(condition, weights, "head_nm.ada_lin.1", 2)
    return linear(plain_norm(x) * (1 + scale) + shift, weights, "head")


def inputs(weights: Weights, condition: Tensor, tokens: Tensor, codebook: Tensor, kernels: list) -> Tensor:
    """The class and a learned vector, then the latents so far, averaged to the side of each further scale."""
    parts, total, first = [condition[:, None] + weights["pos_start"]], 0, 0
    for scale, side in enumerate(SMALL_SCALES[:-1]):
        codes = codebook[tokens[:, first : first + side * side]].mT.unflatten(2, (side, side))
        total = total + multi_scale_reference.part(codes, kernels, scale, SMALL_SCALES)
        down = multi_scale_reference.area_means(SMALL_SCALES[scale + 1], SMALL_SCALES[-1])
        means = torch.einsum("iy,bcyx,jx->bijc", down, total, down).flatten(1, 2)
        parts.append(linear(means, weights, "word_embed"))
        first += side * side
    return torch.cat(parts, dim=1)


def block_pass(x: Tensor, condition: Tensor, weights: Weights, block: str) -> Tensor:
    gate1, gate2, scale1, scale2, shift1, shift2 = adaptive(condition, weights, f"{block}.ada_lin.1", 6)
    x = x + gate1 * self_attention(plain_norm(x) * (1 + scale1) + shift1, weights, f"{block}.attn")
    hidden = linear(plain_norm(x) * (1 + scale2) + shift2, weights, f"{block}.ffn.fc1")
    hidden = hidden / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    return x + gate2 * linear(hidden, weights, f"{block}.ffn.fc2")


def self_attention(x: Tensor, weights: Weights, name: str) -> Tensor:
    bias = torch.cat([weights[f"{name}.{part}_bias"] for part in ("q", "zero_k", "v")])
    projected = F.linear(x, weights[f"{name}.mat_qkv.weight"], bias)
    queries, keys, values = (part.unflatten(2, (NUM_HEADS, -1)) for part in projected.chunk(3, dim=2))
    queries, keys = queries / queries.norm(dim=3, keepdim=True), keys / keys.norm(dim=3, keepdim=True)
    strength = weights[f"{name}.scale_mul_1H11"].exp().clamp(max=100)
    scores = torch.einsum("bihx,bjhx->bhij", queries, keys) * strength + weights["attn_bias_for_masking"]
    mixed = torch.einsum("bhij,bjhx->bihx", scores.softmax(dim=3), values)
    return linear(mixed.flatten(2), weights, f"{name}.proj")


def adaptive(condition: Tensor, weights: Weights, name: str, count: int) -> tuple[Tensor, ...]:
    return linear(condition * condition.sigmoid(), weights, name)[:, None].chunk(count, dim=2)


def plain_norm(x: Tensor) -> Tensor:
    return (x - x.mean(dim=2, keepdim=True)) / (x.var(dim=2, correction=0, keepdim=True) + 1e-6).sqrt()


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
