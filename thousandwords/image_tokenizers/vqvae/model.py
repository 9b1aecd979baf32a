"""The VQ-VAE: a token is the nearest code to the encoder's vector (arXiv 1711.00937, sections 3.1 and 3.2).

The trunk is the dVAE's (nn/conv_blocks.py), so that only the bottleneck differs. Defaults not in the paper: the
codes start after some updates without them, and codes that are not used move. The two grids of VQ-VAE-2 (arXiv
1906.00446) are left out.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.image_tokenizers.base import ImageTokenizer, Logs
from thousandwords.nn.conv_blocks import build_decoder, build_encoder, initialize
from thousandwords.nn.quantizers import QUANTIZERS, Gather

STARTING_LATENTS = 16_384  # that the first codes are chosen from


@dataclass(frozen=True)
class VQVAEConfig:
    quantizer: Literal["vq", "fsq", "simvq"] = "vq"
    vocab_size: int = 512  # tokens in the codebook
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
        check_minimums(self, "vqvae", vocab_size=2, latent_width=1, groups=1, blocks_per_group=1)
        check_minimums(self, "vqvae", decoder_width=1, patch=1, stem_kernel=1, restart_every=1)
        check_minimums(self, "vqvae", first_steps_without_codes=0, commitment_weight=0)
        check_positive(self, "vqvae", "squared_error_weight", "init_gain", "residual_gain")
        if not 0 <= self.codebook_decay < 1:
            raise ValueError(f"vqvae.codebook_decay is {self.codebook_decay}; it needs to be in [0, 1)")
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
    def channels(self) -> int:
        """Channels of the latents and of a token's vector."""
        return len(self.levels) if self.quantizer == "fsq" else self.latent_width

    @property
    def starts_at(self) -> int:
        """The first update that uses codes."""
        return self.first_steps_without_codes if self.quantizer == "vq" else 0

    def restarts_codes(self, step: int) -> bool:
        """Whether codes that are not used move after this update."""
        is_on = self.restart_until is None or step < self.restart_until
        return is_on and self.restart_every is not None and (step + 1) % self.restart_every == 0


class VQVAE(ImageTokenizer):
    """Images (B, 3, H, W) <-> one grid of H / cell by W / cell tokens."""

    config_class = VQVAEConfig
    needs_whole_weights = True  # codes start and move outside of the forward pass

    def __init__(self, config: VQVAEConfig, image_size: int):
        super().__init__(image_size)
        if image_size % config.cell:
            raise ValueError(
                f"image_size is {image_size}, no multiple of the {config.cell} pixels of a token's cell "
                f"(vqvae.patch {config.patch} * 2 ** (vqvae.groups {config.groups} - 1))"
            )
        self.config = config
        self.vocab_size = config.vocab_size
        self.scales = (image_size // config.cell,)
        shape = (config.width, config.groups, config.blocks_per_group, config.residual_gain, config.channels)
        shape = (*shape, config.patch)
        self.encoder = build_encoder(*shape, config.stem_kernel)
        self.decoder = build_decoder(*shape, "input", config.decoder_width, maps=3)
        initialize(self, config.init_gain)
        self.quantizer = QUANTIZERS[config.quantizer](config)
        self.first_images: Tensor | None = None  # of `prepare`, until the codes start
        self.seen: tuple[int, list[Tensor]] = (0, [])  # the last update, and its points by micro-batch
        self.to(memory_format=torch.channels_last)  # faster on a CPU

    @property
    def codebook(self) -> Tensor:
        """The vectors of the tokens (V, channels)."""
        return self.quantizer.codebook

    @property
    def has_frozen_steps(self) -> bool:
        """Whether some weights have no gradient at some updates: the encoder's, if the decoder trains alone, and
        a learned codebook's before the codes are used."""
        config = self.config
        return config.decoder_only_from is not None or (
            config.codebook == "gradient" and config.starts_at > 0
        )

    def muon_parameters(self) -> list[nn.Parameter]:
        """The kernels of all residual branches; not the layers at pixels, latents or codes."""
        return [weight for name, weight in self.named_parameters() if ".path." in name and weight.ndim == 4]

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to token ids (B, L) int64 in raster order."""
        self.check_images(images)
        return self.quantizer.tokens(self._points(images)).view(len(images), self.num_tokens)

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode token ids (B, L) int64 to images (B, 3, H, W) in [0, 1]."""
        self.check_tokens(tokens)
        return self._decode(self.codebook[tokens]).clamp(0, 1)

    @torch.no_grad()
    def prepare(self, image_batches: Iterable[Tensor], rng: torch.Generator) -> None:
        """Keep the images whose latents the first codes are chosen from, by `after_update` or, without updates
        before, at once."""
        if not self.quantizer.starts_from_latents:
            return
        batches: list[Tensor] = []
        for batch in image_batches:
            batches.append(batch)
            if sum(map(len, batches)) * self.num_tokens >= STARTING_LATENTS:
                break
        self.first_images = torch.cat(batches)
        if self.config.starts_at == 0:
            self._start_codes(rng)

    def loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """The weighted squared error + the quantizer's loss (paper, equation 3), and their parts."""
        self.check_images(images)
        if self.config.decoder_only_from is not None and step >= self.config.decoder_only_from:
            return self.decoder_loss(images)
        points = self._points(images)
        if step < self.config.starts_at:
            loss = self._reconstruction_loss(images, points)
            return loss, {"reconstruction_loss": loss.detach()}
        tokens = self.quantizer.tokens(points.detach())
        codes = self.codebook[tokens]
        self.seen = (step, [*(self.seen[1] if self.seen[0] == step else []), points.detach()])
        # straight through: the decoder sees the codes, and its gradient reaches the latents
        reconstruction_loss = self._reconstruction_loss(images, points + (codes - points).detach())
        quantizer_loss, commitment_loss = self.quantizer.loss(points, codes)
        shares = tokens.bincount(minlength=self.vocab_size) / len(tokens)
        return reconstruction_loss + quantizer_loss, {
            "reconstruction_loss": reconstruction_loss.detach(),
            "commitment_loss": commitment_loss.detach(),
            "code_distance": (points - codes).detach().norm(dim=1).mean(),
            "batch_perplexity": torch.special.entr(shares).sum().exp(),
        }

    def decoder_loss(self, images: Tensor) -> tuple[Tensor, Logs]:
        """The decoder alone, on the tokens that the generator is trained on."""
        with torch.no_grad():
            codes = self.codebook[self.encode(images)]
        loss = self._reconstruction_loss(images, codes)
        return loss, {"reconstruction_loss": loss.detach()}

    @torch.no_grad()
    def after_update(self, step: int, rng: torch.Generator, gather: Gather) -> Logs:
        """Start or move the codes after an update of the weights; the values to log. A collective call."""
        if step + 1 == self.config.starts_at and self.first_images is not None:
            self._start_codes(rng)
        seen_step, points = self.seen
        self.seen = (step, [])
        if seen_step != step or not points:
            return {}
        return self.quantizer.after_update(torch.cat(points), step, rng, gather)

    def _start_codes(self, rng: torch.Generator) -> None:
        points = torch.cat([self._points(images) for images in self.first_images.split(self.max_batch_size)])
        self.quantizer.start(points, rng)
        self.first_images = None

    def _reconstruction_loss(self, images: Tensor, vectors: Tensor) -> Tensor:
        return self.config.squared_error_weight * (self._decode(vectors) - images).square().mean()

    def _points(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the latents in the space of the codes (B * L, C) float32."""
        pixels = (images - 0.5).contiguous(memory_format=torch.channels_last)
        return self.quantizer.points(self.encoder(pixels).permute(0, 2, 3, 1).flatten(0, 2).float())

    def _decode(self, vectors: Tensor) -> Tensor:
        """Vectors of tokens (B * L, C) or (B, L, C) -> pixels (B, 3, H, W) float32, about in [0, 1]."""
        grid = vectors.view(-1, self.scales[0], self.scales[0], self.config.channels)
        return self.decoder(grid.permute(0, 3, 1, 2)).float() + 0.5
