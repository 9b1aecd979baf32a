"""The VQ-VAE: a token is the nearest code to the encoder's vector (arXiv 1711.00937, sections 3.1 and 3.2).

The trunk is the dVAE's (nn/conv_blocks.py), so that only the bottleneck differs. Defaults not in the paper: the
codes start after some updates without them, and codes that are not used move. With two `scales` it is VQ-VAE-2 (arXiv
1906.00446, section 3.1): a coarse grid with a codebook of its own, and a fine one that is chosen knowing the coarse.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.image_tokenizers.base import CodebookSettings, CodebookTokenizer, Logs
from thousandwords.nn.conv_blocks import (
    DECODER_KERNELS,
    ENCODER_KERNELS,
    Layers,
    add_groups,
    build_decoder,
    build_encoder,
    convolution,
    initialize,
)
from thousandwords.nn.quantizers import QUANTIZERS, Quantizer, code_metrics, token_shares


@dataclass(frozen=True)
class VQVAEConfig(CodebookSettings):
    quantizer: Literal["vq", "fsq", "simvq"] = "vq"
    vocab_size: int = 512  # tokens in the codebook, of each grid
    scales: tuple[int, ...] | None = None  # two grids: (side / 2, side), as in VQ-VAE-2; null: one
    latent_width: int = 16  # channels of a token's vector; with fsq the number of levels instead
    levels: tuple[int, ...] = (8, 8, 8)  # fsq: of each dimension; their product is vocab_size
    codebook: Literal["ema", "gradient"] = "ema"  # vq: codes are averages of latents, or learned weights
    codebook_decay: float = 0.99  # vq: gamma of the averages, per update
    commitment_weight: float = 0.25  # vq, simvq: beta
    l2_normalize: bool = False  # vq: latents and codes of unit length
    first_steps_without_codes: int = 100  # vq: updates in which the decoder sees the latents
    restart_every: int | None = 10  # vq: updates between moves of unused codes; null: never
    restart_until: int | None = None  # vq: from this update no code is moved; null: always
    squared_error_weight: float = (
        20.0  # about 1 / variance of pixels in [0, 1], the divisor of the paper's code
    )
    decoder_only_from: int | None = None  # from this update the decoder trains alone, on the images' tokens
    # the trunk
    width: int = 64  # channels of the finest grid; each coarser grid doubles them
    groups: int = 2  # residual groups; the grid halves between them
    blocks_per_group: int = 2
    decoder_width: int = 128  # channels of the decoder's first convolution
    stem_kernel: int = 3  # side of the encoder's first convolution
    patch: int = 4  # side of the square of pixels that the networks see as one position
    init_gain: float = 1.414  # deviation of first weights, times the root of their inputs
    residual_gain: float = 0.25  # of every residual branch

    def __post_init__(self) -> None:
        self.check_codebook("vqvae")
        check_minimums(self, "vqvae", latent_width=1, groups=1, blocks_per_group=1)
        check_minimums(self, "vqvae", decoder_width=1, patch=1, stem_kernel=1)
        check_positive(self, "vqvae", "squared_error_weight", "init_gain", "residual_gain")
        if self.width < 4 or self.width % 4:
            raise ValueError(
                f"vqvae.width is {self.width}; a bottleneck is a quarter of it, so give a multiple of 4"
            )
        if self.stem_kernel % 2 == 0:
            raise ValueError(f"vqvae.stem_kernel is {self.stem_kernel}; an odd side keeps the grid in place")
        if self.quantizer == "fsq":
            self._check_levels()

    def _check_levels(self) -> None:
        levels = list(self.levels)
        if not levels or min(levels) < 2:
            raise ValueError(
                f"vqvae.levels is {levels}; give each dimension 2 levels or more, as in [8, 8, 8]"
            )
        if math.prod(levels) != self.vocab_size:
            raise ValueError(
                f"vqvae.vocab_size is {self.vocab_size}, but vqvae.levels, {levels}, make {math.prod(levels)} tokens. "
                f"Set vqvae.vocab_size: {math.prod(levels)}"
            )

    @property
    def cell(self) -> int:
        """Pixels on the side of one token's cell."""
        return self.patch * 2 ** (self.groups - 1)

    @property
    def coarsest_width(self) -> int:
        """Channels of the trunk at the grid of tokens."""
        return self.width * 2 ** (self.groups - 1)

    @property
    def channels(self) -> int:
        """Channels of the latents and of a token's vector."""
        return len(self.levels) if self.quantizer == "fsq" else self.latent_width

    @property
    def starts_at(self) -> int:
        """The first update that uses codes."""
        return self.first_steps_without_codes if self.quantizer == "vq" else 0


@dataclass(frozen=True)
class LatentGrid:
    """The latents of one grid in the space of its codes, (B * n, C), and what they are rounded to."""

    points: Tensor
    tokens: Tensor | None = None  # (B * n,); None before the codes are used
    codes: Tensor | None = None  # (B * n, C)

    @property
    def vectors(self) -> Tensor:
        """What the decoder sees: the codes, straight through, so that its gradient reaches the latents."""
        if self.codes is None:
            return self.points
        return self.points + (self.codes - self.points).detach()


class TopGrid(nn.Module):
    """The coarse grid of VQ-VAE-2, half the side of the other, the bottom: its tokens, and what the bottom sees of them."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        width, channels = config.coarsest_width, config.channels
        shape = ([width, width], config.blocks_per_group)
        encoder: Layers = OrderedDict(resize=nn.MaxPool2d(2))
        add_groups(encoder, *shape, ENCODER_KERNELS, config.residual_gain, nn.Identity())
        encoder["relu"] = nn.ReLU()
        encoder["output"] = convolution(width, channels, 1)
        self.encoder = nn.Sequential(encoder)
        decoder: Layers = OrderedDict(input=convolution(channels, width, 1))
        add_groups(decoder, *shape, DECODER_KERNELS, config.residual_gain, nn.Identity())
        decoder["resize"] = nn.Upsample(scale_factor=2, mode="nearest")
        self.decoder = nn.Sequential(decoder)
        self.to_bottom = nn.Sequential(nn.ReLU(), convolution(2 * width, channels, 1))
        self.quantizer = QUANTIZERS[config.quantizer](config)

    def bottom_latents(self, features: Tensor, vectors: Tensor) -> Tensor:
        """The latents of the bottom grid (B, C, h, w), from the encoder's features (B, width, h, w) and the vectors of
        this grid's tokens (B * n, C)."""
        rows, side = len(features), features.shape[2] // 2
        decoded = self.decoder(vectors.view(rows, side, side, -1).permute(0, 3, 1, 2))
        return self.to_bottom(torch.cat([features, decoded], dim=1))


class VQVAE(CodebookTokenizer):
    """Images (B, 3, H, W) <-> one grid of H / cell by W / cell tokens, or a grid of half the side before it."""

    config_class = VQVAEConfig

    def __init__(self, config: VQVAEConfig, image_size: int):
        super().__init__(image_size)
        if image_size % config.cell:
            raise ValueError(
                f"image_size is {image_size}, no multiple of the {config.cell} pixels of a token's cell "
                f"(vqvae.patch {config.patch} * 2 ** (vqvae.groups {config.groups} - 1))"
            )
        self.config = config
        self.vocab_size = config.vocab_size
        side = image_size // config.cell
        self.scales = tuple(config.scales or (side,))
        if self.scales != (side,) and self.scales != (side / 2, side):
            halves = f"[{side // 2}, {side}], or " if side % 2 == 0 else ""
            raise ValueError(
                f"vqvae.scales is {list(self.scales)}, but images of {image_size} pixels have {side} cells of "
                f"{config.cell} pixels a side. Set vqvae.scales: {halves}null for one grid"
            )
        shape = (config.width, config.groups, config.blocks_per_group, config.residual_gain)
        has_top = len(self.scales) > 1
        outputs = config.coarsest_width if has_top else config.channels
        self.encoder = build_encoder(*shape, outputs, config.patch, config.stem_kernel)
        inputs = config.channels * len(self.scales)
        self.decoder = build_decoder(*shape, inputs, config.patch, "input", config.decoder_width, maps=3)
        self.top = TopGrid(config) if has_top else None
        initialize(self, config.init_gain)
        self.quantizer = QUANTIZERS[config.quantizer](config)
        self.to(memory_format=torch.channels_last)  # faster on a CPU

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """Of each grid of `scales` its own, coarse first: the fine grid's latents see its codes."""
        if self.top is None:
            return {"": self.quantizer}
        quantizers = (self.top.quantizer, self.quantizer)
        return {f"_scale_{side}": each for side, each in zip(self.scales, quantizers, strict=True)}

    def starting_points(self, images: Tensor, number: int) -> Tensor:
        """The latents (N, channels) of images in the grid of that number."""
        return self._grids(images)[number].points

    def code_vectors(self, tokens: Tensor) -> Tensor:
        """The vectors (B, L, channels) of tokens (B, L), each from the codebook of its grid."""
        grids = tokens.split([side * side for side in self.scales], dim=1)
        vectors = [
            quantizer.codebook[grid] for quantizer, grid in zip(self.quantizers.values(), grids, strict=True)
        ]
        return vectors[0] if self.top is None else torch.cat(vectors, dim=1)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to token ids (B, L) int64: the grids of `scales`, each in raster order."""
        self.check_images(images)
        return torch.cat([grid.tokens.view(len(images), -1) for grid in self._grids(images)], dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode token ids (B, L) int64 to images (B, 3, H, W) in [0, 1]."""
        self.check_tokens(tokens)
        return self._decode(self.code_vectors(tokens)).clamp(0, 1)

    def images_so_far(self, tokens: Tensor) -> list[Tensor]:
        """The images (B, 3, H, W) in [0, 1] after each grid. After the coarse one of two, every cell of the fine grid has
        the mean of its codes: the decoder never saw the coarse grid alone."""
        images = [self.decode(tokens)]
        if self.top is None:
            return images
        top, bottom = self.code_vectors(tokens).tensor_split([self.scales[0] ** 2], dim=1)
        unknown = self.codebook.mean(dim=0).expand_as(bottom)
        return [self._decode(torch.cat([top, unknown], dim=1)).clamp(0, 1), *images]

    def loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """The weighted squared error + the quantizer's loss (paper, equation 3), and their parts."""
        self.check_images(images)
        if self.config.decoder_only_from is not None and step >= self.config.decoder_only_from:
            return self.decoder_loss(images, step)
        uses_codes = step >= self.config.starts_at
        grids = self._grids(images, uses_codes)
        loss, logs = self._reconstruction_loss(images, self._joined(grids), step)
        if not uses_codes:
            return loss, logs
        self.keep_points(step, *(grid.points.detach() for grid in grids))
        for (suffix, quantizer), grid in zip(self.quantizers.items(), grids, strict=True):
            quantizer_loss, commitment_loss = quantizer.loss(grid.points, grid.codes)
            loss = loss + quantizer_loss
            values = {"commitment_loss": commitment_loss.detach()}
            values |= code_metrics(grid.points, grid.codes, grid.tokens, self.vocab_size)
            if self.top is not None:
                shares = token_shares(grid.tokens, self.vocab_size)
                values["batch_codes_used"] = (shares > 0).float().mean()
            logs |= {f"{name}{suffix}": value for name, value in values.items()}
        return loss, logs

    def _reconstruction_loss(self, images: Tensor, vectors: Tensor, step: int) -> tuple[Tensor, Logs]:
        decoded = self._decode(vectors)
        error = self.config.squared_error_weight * (decoded - images).square().mean()
        return self.image_loss(error, images, decoded, step)

    def _grids(self, images: Tensor, uses_codes: bool = True) -> list[LatentGrid]:
        """(B, 3, H, W) -> the latents of every grid of `scales`, float32, rounded to codes or not."""
        features = self.encoder((images - 0.5).contiguous(memory_format=torch.channels_last))
        if self.top is None:
            return [latent_grid(self.quantizer, features, uses_codes)]
        top = latent_grid(self.top.quantizer, self.top.encoder(features), uses_codes)
        latents = self.top.bottom_latents(features, top.vectors)
        return [top, latent_grid(self.quantizer, latents, uses_codes)]

    def _joined(self, grids: list[LatentGrid]) -> Tensor:
        """What the decoder sees of one grid (B * L, C), of two (B, L, C)."""
        if self.top is None:
            return grids[0].vectors
        counts = [side * side for side in self.scales]
        parts = [grid.vectors.unflatten(0, (-1, count)) for grid, count in zip(grids, counts, strict=True)]
        return torch.cat(parts, dim=1)

    def _decode(self, vectors: Tensor) -> Tensor:
        """Vectors of tokens (B * L, C) or (B, L, C) -> pixels (B, 3, H, W) float32, about in [0, 1]."""
        grids = vectors.view(-1, self.num_tokens, self.config.channels)
        maps = [
            grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
            for grid, side in zip(
                grids.split([side * side for side in self.scales], dim=1), self.scales, strict=True
            )
        ]
        if self.top is not None:
            maps = [torch.cat([functional.interpolate(maps[0], scale_factor=2.0), maps[1]], dim=1)]
        return self.decoder(maps[0]).float() + 0.5


def latent_grid(quantizer: Quantizer, latents: Tensor, uses_codes: bool) -> LatentGrid:
    """Latents (B, C, h, w) as points, in raster order, and their codes unless those are not used yet."""
    points = quantizer.points(latents.permute(0, 2, 3, 1).flatten(0, 2).float())
    if not uses_codes:
        return LatentGrid(points)
    tokens = quantizer.tokens(points.detach())
    return LatentGrid(points, tokens, quantizer.codebook[tokens])
