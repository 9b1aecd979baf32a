"""A U-Net over images that sees the vectors of their tokens at every level: the network of the decoders.

Residual blocks as in diffusion U-Nets (arXiv 2006.11239, appendix B), without attention; patch * patch pixels become
channels first. Where it has a time or a role, each level sees them beside the tokens' vectors.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords.core.config import check_minimums

GROUPS = 8  # of the group normalization
CHANNELS = 3
TOKEN_STD = 0.02  # of the tokens' vectors at first
TIME_FREQUENCIES = 4  # of the sines and cosines of the time


@dataclass(frozen=True)
class TokenUNetConfig:
    patch: int = 2  # side of the square of pixels that is one position of the finest level
    widths: tuple[int, ...] = (
        32,
        64,
        128,
    )  # channels of each level; each has half the side of the one before
    blocks: int = 1  # residual blocks of a level, on the way down and on the way up
    token_width: int = 32  # channels of a token's vector

    def check_sizes(self, name: str) -> None:
        """Raise ValueError if a size of the section called `name` is out of range."""
        check_minimums(self, name, patch=1, blocks=1, token_width=1)
        if not self.widths or any(width < GROUPS or width % GROUPS for width in self.widths):
            raise ValueError(
                f"{name}.widths is {list(self.widths)}; give one multiple of {GROUPS} for each level"
            )


class TokenUNet(nn.Module):
    """Tokens (B, L) and `images_seen` images of each row, (B, 3 * images_seen, H, W) in [0, 1] -> what to add to an image."""

    def __init__(
        self,
        config: TokenUNetConfig,
        name: str,
        image_size: int,
        vocab_size: int,
        scales: tuple[int, ...],
        images_seen: int = 1,
        has_time: bool = False,
        has_role: bool = False,
    ):
        """`name` is that of the section of `config`, for messages."""
        super().__init__()
        cell = config.patch * 2 ** (len(config.widths) - 1)
        if image_size % cell:
            raise ValueError(
                f"image_size is {image_size}, no multiple of the {cell} pixels of a position of the coarsest level "
                f"({name}.patch {config.patch} * 2 ** ({len(config.widths)} {name}.widths - 1))"
            )
        self.config, self.scales = config, tuple(scales)
        self.codes = nn.ModuleList(nn.Embedding(vocab_size, config.token_width) for _ in scales)
        first, *others = config.widths
        self.input = convolution(images_seen * CHANNELS * config.patch**2, first)
        seen = config.token_width * len(scales) + 2 * TIME_FREQUENCIES * has_time + has_role
        self.tokens_in = nn.ModuleList(nn.Conv2d(seen, width, 1) for width in config.widths)
        self.down = nn.ModuleList(_blocks(width, width, config.blocks) for width in config.widths)
        self.shrink = nn.ModuleList(
            convolution(fine, coarse, stride=2) for fine, coarse in zip(config.widths, others, strict=False)
        )
        self.middle = ResidualBlock(config.widths[-1], config.widths[-1])
        self.up = nn.ModuleList(_blocks(2 * width, width, config.blocks) for width in config.widths)
        self.enlarge = nn.ModuleList(
            convolution(coarse, fine) for fine, coarse in zip(config.widths, others, strict=False)
        )
        self.output = nn.Sequential(
            nn.GroupNorm(GROUPS, first), nn.SiLU(), convolution(first, CHANNELS * config.patch**2)
        )
        for codes in self.codes:
            # small beside the image: with the usual 1 it took over 900 updates to use the tokens
            nn.init.normal_(codes.weight, std=TOKEN_STD)
        nn.init.zeros_(self.output[-1].weight)  # the first images are the tokenizer's own
        nn.init.zeros_(self.output[-1].bias)
        if has_role:
            for layer in self.tokens_in:
                nn.init.zeros_(layer.weight[:, -1])  # both roles start as one
        self.to(memory_format=torch.channels_last)  # faster on a CPU

    def muon_parameters(self) -> list[nn.Parameter]:
        """All 3 x 3 kernels but the first and the last one."""
        inner = nn.ModuleList([self.down, self.shrink, self.middle, self.up, self.enlarge])
        return [weight for weight in inner.parameters() if weight.ndim == 4 and weight.shape[-1] == 3]

    def correction(
        self, tokens: Tensor, images: Tensor, time: Tensor | None = None, role: Tensor | None = None
    ) -> Tensor:
        """What to add to an image, (B, 3, H, W) float32, from the tokens (B, L), the images seen (B, 3 * images_seen, H, W)
        and, if it has them, the time (B,) in [0, 1] and the role (B,), 0 or 1."""
        pixels = functional.pixel_unshuffle(2 * images - 1, self.config.patch)
        features = self.input(pixels.contiguous(memory_format=torch.channels_last))
        vectors, skips = self._vectors(tokens), []
        if time is not None:
            vectors.append(time_features(time)[:, :, None, None])
        if role is not None:
            vectors.append(role[:, None, None, None])
        for level, blocks in enumerate(self.down):
            side = features.shape[-1]
            resized = [functional.interpolate(each, size=(side, side), mode="nearest") for each in vectors]
            features = blocks(features + self.tokens_in[level](torch.cat(resized, dim=1)))
            skips.append(features)
            if level < len(self.shrink):
                features = self.shrink[level](features)
        features = self.middle(features)
        for level in reversed(range(len(self.up))):
            features = self.up[level](torch.cat([features, skips[level]], dim=1))
            if level:
                features = self.enlarge[level - 1](functional.interpolate(features, scale_factor=2.0))
        return functional.pixel_shuffle(self.output(features).float(), self.config.patch)

    def _vectors(self, tokens: Tensor) -> list[Tensor]:
        """The tokens' vectors of each scale: (B, token_width, side, side)."""
        grids = tokens.split([side * side for side in self.scales], dim=1)
        return [
            codes(grid).movedim(2, 1).unflatten(2, (side, side))
            for codes, grid, side in zip(self.codes, grids, self.scales, strict=True)
        ]


def time_features(time: Tensor) -> Tensor:
    """Sines and cosines of a time (B,) in [0, 1]: (B, 2 * TIME_FREQUENCIES)."""
    angles = time[:, None] * math.pi / 2 * 2.0 ** torch.arange(TIME_FREQUENCIES, device=time.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """x + path(x), the path two times (group normalization, SiLU, convolution), the second one 0 at first."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.identity = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.path = nn.Sequential(
            nn.GroupNorm(GROUPS, inputs),
            nn.SiLU(),
            convolution(inputs, outputs),
            nn.GroupNorm(GROUPS, outputs),
            nn.SiLU(),
            convolution(outputs, outputs),
        )
        nn.init.zeros_(self.path[-1].weight)
        nn.init.zeros_(self.path[-1].bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return self.identity(features) + self.path(features)


def _blocks(inputs: int, outputs: int, count: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(inputs, outputs), *(ResidualBlock(outputs, outputs) for _ in range(count - 1))
    )


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps height and width, or halves them with stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
