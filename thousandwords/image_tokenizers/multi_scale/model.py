"""VAR's multi-scale tokenizer: grids of tokens from coarse to fine, whose codes add up to the latents (arXiv
2404.02905, section 3.2).

All scales share one codebook and a few convolutions (nn/residual_scales.py). Defaults are small ones; those of the
published tokenizer: trunk vqgan, vocab_size 4096, latent_width 32, scales [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]. How
that one was trained is unpublished. The perceptual term and the adversary of the paper's loss belong to the training
(nn/image_losses.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.image_tokenizers.base import CodebookSettings, CodebookTokenizer, Logs
from thousandwords.image_tokenizers.multi_scale.trunks import DVAETrunk, VQGANTrunk
from thousandwords.nn.quantizers import VectorQuantizer, code_metrics, nearest, token_shares
from thousandwords.nn.residual_scales import ResidualScales


@dataclass(frozen=True)
class MultiScaleConfig(CodebookSettings):
    vocab_size: int = 512  # tokens in the codebook
    latent_width: int = 16  # channels of the latents and of a token's vector
    scales: tuple[int, ...] = (1, 2, 3, 4, 6, 8)  # sides of the grids; the last is the side of the latents
    num_phi: int = 4  # convolutions that the scales share
    codebook: Literal["ema", "gradient"] = "ema"  # codes are averages of points, or learned weights
    codebook_decay: float = 0.99  # gamma of the averages, per update
    commitment_weight: float = 0.25  # beta
    l2_normalize: bool = False  # a token is the code of the nearest direction; codes keep their lengths
    stop_share: float = 0.1  # of a batch's images: the decoder sees them after a scale chosen at random
    first_steps_without_codes: int = 100  # updates in which the decoder sees the latents
    restart_every: int | None = 10  # updates between moves of unused codes; null: never
    restart_until: int | None = None  # from this update no code is moved; null: always
    squared_error_weight: float = 20.0  # about 1 / variance of pixels in [0, 1]
    decoder_only_from: int | None = None  # from this update the decoder trains alone, on the images' tokens
    trunk: Literal["dvae", "vqgan"] = "dvae"
    dvae: DVAETrunk = DVAETrunk()  # its sizes, used with trunk dvae
    vqgan: VQGANTrunk = VQGANTrunk()  # used with trunk vqgan

    def __post_init__(self) -> None:
        self.check_codebook("multi_scale")
        check_minimums(self, "multi_scale", latent_width=1, num_phi=1)
        check_positive(self, "multi_scale", "squared_error_weight")
        scales = list(self.scales)
        if not scales or scales[0] < 1 or scales != sorted(set(scales)):
            raise ValueError(
                f"multi_scale.scales is {scales}; give sides that grow from 1 or more, as in [1, 2, 4, 8]"
            )
        if not 0 <= self.stop_share <= 1:
            raise ValueError(f"multi_scale.stop_share is {self.stop_share}; it needs to be in [0, 1]")

    @property
    def sizes(self) -> DVAETrunk | VQGANTrunk:
        """The sizes of the chosen trunk."""
        return self.dvae if self.trunk == "dvae" else self.vqgan


class ResidualQuantizer(VectorQuantizer):
    """The codebook of all scales. What is left over shrinks from scale to scale, so codes keep their lengths: with
    `l2_normalize` only the choice is by direction (an option of VAR's code)."""

    def tokens(self, points: Tensor) -> Tensor:
        if not self.config.l2_normalize:
            return super().tokens(points)
        return nearest(functional.normalize(points), functional.normalize(self.codebook))

    def _normalized(self, vectors: Tensor) -> Tensor:
        return vectors


class MultiScale(CodebookTokenizer):
    """Images (B, 3, H, W) <-> the tokens of all scales; the latents are H / cell by W / cell."""

    config_class = MultiScaleConfig

    def __init__(self, config: MultiScaleConfig, image_size: int):
        super().__init__(image_size)
        side = config.scales[-1]
        if image_size != side * config.sizes.cell:
            made = f"multi_scale.scales end at {side}, which with {config.sizes.cell} pixels a cell (multi_scale.{config.trunk})"
            raise ValueError(
                f"image_size is {image_size}, but {made} makes {side * config.sizes.cell}. Make them equal"
            )
        self.config = config
        self.vocab_size = config.vocab_size
        self.scales = config.scales
        self.encoder, self.decoder = config.sizes.build(config.latent_width)
        self.residual = ResidualScales(config.scales, config.latent_width, config.num_phi)
        self.quantizer = ResidualQuantizer(config)
        self.to(memory_format=torch.channels_last)  # faster on a CPU

    @property
    def has_frozen_steps(self) -> bool:
        """Whether some weights have no gradient at some updates: before the codes are used all that makes latents of
        codes, and the encoder's, if the decoder trains alone."""
        return self.config.first_steps_without_codes > 0 or self.config.decoder_only_from is not None

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to token ids (B, L) int64: the grids of `scales`, each in raster order."""
        self.check_images(images)
        return self._tokens_and_points(self._latents(images))[0]

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode token ids (B, L) int64 to images (B, 3, H, W) in [0, 1]."""
        self.check_tokens(tokens)
        return self.decode_latents(self.latents_so_far(tokens)[-1])

    def images_so_far(self, tokens: Tensor) -> list[Tensor]:
        """The images (B, 3, H, W) in [0, 1] after each scale, from the tokens of all scales or of the first ones."""
        return [self.decode_latents(latents) for latents in self.latents_so_far(tokens)]

    def latents_so_far(self, tokens: Tensor) -> list[Tensor]:
        """The latents (B, latent_width, h, w) after each scale, from the tokens of all scales or of the first ones."""
        return self.residual.sums(self.codebook[tokens])

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, latent_width, h, w) -> images (B, 3, H, W) in [0, 1]."""
        return self._pixels(latents).clamp(0, 1)

    def loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """The weighted squared error + the mean over scales of what the latents so far miss, once for phi and a
        codebook trained by gradient, and with the weight beta for the encoder; and its parts."""
        self.check_images(images)
        config = self.config
        if config.decoder_only_from is not None and step >= config.decoder_only_from:
            return self.decoder_loss(images, step)
        latents = self._latents(images)
        if step < config.first_steps_without_codes:
            return self._reconstruction_loss(images, latents, step)
        tokens, points = self._tokens_and_points(latents.detach())
        self.keep_points(step, torch.cat(points))
        so_far = torch.stack(self.latents_so_far(tokens))  # (S, B, C, h, w)
        # straight through, once: the decoder sees the sum, and its gradient reaches the latents
        shown = self._stopped(so_far.detach(), rng)
        straight_through = latents + (shown - latents).detach()
        reconstruction_loss, logged = self._reconstruction_loss(images, straight_through, step)
        commitment = (so_far.detach() - latents).square().flatten(1).mean(dim=1)  # (S,)
        codebook_loss = functional.mse_loss(so_far, latents.detach().expand_as(so_far))
        loss = reconstruction_loss + codebook_loss + config.commitment_weight * commitment.mean()
        return loss, {**logged, **self._scale_logs(tokens, points, commitment.detach())}

    def decoder_loss(self, images: Tensor, step: int) -> tuple[Tensor, Logs]:
        """The decoder alone, on the tokens that the generator is trained on."""
        with torch.no_grad():
            latents = self.latents_so_far(self.encode(images))[-1]
        return self._reconstruction_loss(images, latents, step)

    def starting_points(self, images: Tensor, number: int) -> Tensor:
        """The points (N, latent_width) that the scales would have if every code were exact."""
        return torch.cat(self.residual.points(self._latents(images), rounded=lambda points: points))

    @torch.no_grad()
    def _tokens_and_points(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The tokens (B, L) of latents (B, C, h, w), and the points of each scale (B * side * side, C)."""
        tokens, codebook = [], self.codebook

        def rounded(points: Tensor) -> Tensor:
            tokens.append(self.quantizer.tokens(points))
            return codebook[tokens[-1]]

        points = self.residual.points(latents, rounded)
        return torch.cat([each.view(len(latents), -1) for each in tokens], dim=1), points

    def _stopped(self, so_far: Tensor, rng: torch.Generator) -> Tensor:
        """The latents that the decoder sees (B, C, h, w): those after the last scale, or of `stop_share` of the
        images those after an earlier scale, each as likely."""
        last, size = len(so_far) - 1, so_far.shape[1]
        if last == 0 or self.config.stop_share == 0:
            return so_far[-1]
        chance, place = torch.rand(2, size, generator=rng, device=so_far.device)
        stops = torch.where(chance < self.config.stop_share, (place * last).long(), last)
        return so_far[stops, torch.arange(size, device=so_far.device)]

    def _scale_logs(self, tokens: Tensor, points: list[Tensor], commitment: Tensor) -> Logs:
        """What the latents so far miss, the distance of points to their codes, and the batch's perplexity and share of
        codes in use: of all scales, and of each with its side in the name."""
        lengths = [side * side for side in self.scales]
        grids = [grid.flatten() for grid in tokens.split(lengths, dim=1)]
        parts = [
            (f"_scale_{side}", *part)
            for side, *part in zip(self.scales, points, grids, commitment, strict=True)
        ]
        codebook, logs = self.codebook.detach(), {}
        for name, part, grid, miss in [("", torch.cat(points), torch.cat(grids), commitment.mean()), *parts]:
            codes = codebook[grid]
            values = {"commitment_loss": miss, **code_metrics(part, codes, grid, self.vocab_size)}
            values["batch_codes_used"] = (token_shares(grid, self.vocab_size) > 0).float().mean()
            logs |= {f"{key}{name}": value for key, value in values.items()}
        return logs

    def _reconstruction_loss(self, images: Tensor, latents: Tensor, step: int) -> tuple[Tensor, Logs]:
        decoded = self._pixels(latents)
        error = self.config.squared_error_weight * (decoded - images).square().mean()
        return self.image_loss(error, images, decoded, step)

    def _latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, latent_width, h, w) float32."""
        pixels = (images - 0.5) * self.config.sizes.pixel_range
        return self.encoder(pixels.contiguous(memory_format=torch.channels_last)).float()

    def _pixels(self, latents: Tensor) -> Tensor:
        """(B, latent_width, h, w) -> pixels (B, 3, H, W) float32, about in [0, 1]."""
        return self.decoder(latents).float() / self.config.sizes.pixel_range + 0.5
