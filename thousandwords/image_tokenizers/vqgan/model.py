"""The tokenizer of VQGAN (arXiv 2012.09841, section 3.1), with the codes of LlamaGen (2406.06525, section 3.1).

The defaults are LlamaGen's VQ-16. Those of taming-transformers' f16-16384: code_width 256, l2_normalize false,
commitment_weight 1, codebook_weight 0.25, pixel_loss absolute. With quantizer gumbel, as in its f8, the encoder
ends in logits, from which training samples tokens (arXiv 1611.01144). Not in the papers, and off by default: codes
start, move and settle as in vqvae, so that few small images do not collapse onto a few of them. The adversary and
the perceptual term of the papers' loss belong to the training, not to the model (nn/image_losses.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.image_tokenizers.base import CodebookSettings, CodebookTokenizer, Logs
from thousandwords.nn.gumbel_softmax import gumbel_softmax, kl_and_usage
from thousandwords.nn.quantizers import VectorQuantizer, code_metrics
from thousandwords.nn.schedules import cosine
from thousandwords.nn.vqgan_trunk import build_decoder, build_encoder

PIXEL_LOSSES = {"absolute": functional.l1_loss, "squared": functional.mse_loss}


@dataclass(frozen=True)
class VQGANConfig(CodebookSettings):
    vocab_size: int = 16_384  # tokens in the codebook
    width: int = 128  # channels of level 1, which has the side of the image
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # of each level's channels; the side halves between levels
    blocks: int = 2  # residual blocks of a level; the decoder has one more
    norm_groups: int = 32  # of every normalization
    attention: bool = True  # in the last level and in the middle
    latent_width: int = 256  # channels between the trunk and the codes
    code_width: int = 8  # channels of a token's vector
    quantizer: Literal["nearest", "gumbel"] = "nearest"  # the nearest code's token, or the greatest logit's
    l2_normalize: bool = True  # nearest: vectors and codes of unit length
    commitment_weight: float = 0.25  # nearest: of the mean squared error of vectors to their fixed codes
    codebook_weight: float = 1.0  # nearest, gradient: of the same error of codes to their fixed vectors
    codebook: Literal["gradient", "ema"] = "gradient"  # nearest: codes are learned, or averages of vectors
    codebook_decay: float = 0.99  # nearest: gamma of the averages, per update
    first_steps_without_codes: int = 0  # nearest: the decoder sees the vectors; 0: codes start uniform
    restart_every: int | None = None  # nearest: updates between moves of unused codes; null: never
    restart_until: int | None = None  # nearest: from this update no code is moved; null: always
    kl_weight: float = 1e-8  # gumbel: of a token's KL to the uniform prior, in nats
    temperature_start: float = 0.9  # gumbel: tau of the Gumbel-softmax
    temperature_end: float = 1e-6
    temperature_steps: int = 1_000_001  # gumbel: updates over which tau falls, as a cosine
    pixel_loss: Literal["absolute", "squared"] = "squared"  # mean error of pixels in [-1, 1]
    decoder_only_from: int | None = None  # from this update the decoder trains alone, on the images' tokens

    def __post_init__(self) -> None:
        self.check_codebook("vqgan")
        check_minimums(self, "vqgan", width=1, blocks=1, norm_groups=1, latent_width=1, code_width=1)
        check_minimums(self, "vqgan", codebook_weight=0, kl_weight=0, temperature_steps=0)
        check_positive(self, "vqgan", "temperature_start", "temperature_end")
        if self.quantizer == "gumbel" and self.codebook == "ema":
            raise ValueError(
                "vqgan.codebook is ema, but the codes of vqgan.quantizer gumbel are learned. Set vqgan.codebook: gradient"
            )
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"vqgan.multipliers is {list(self.multipliers)}; give each level 1 or more, as in [1, 2, 4]"
            )
        if self.width % self.norm_groups:
            raise ValueError(
                f"vqgan.width is {self.width}, no multiple of vqgan.norm_groups, {self.norm_groups}"
            )

    @property
    def cell(self) -> int:
        """Pixels on the side of one token's cell."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def starts_at(self) -> int:
        """The first update that uses codes."""
        return self.first_steps_without_codes if self.quantizer == "nearest" else 0

    @property
    def moves_codes(self) -> bool:
        """Whether codes also change outside of the gradient."""
        return self.quantizer == "nearest" and (self.codebook == "ema" or self.restart_every is not None)


class Codebook(VectorQuantizer):
    """The vectors of tokens. They start uniform, and both losses are means over channels too (in the paper, equation 4,
    sums). With gumbel it only keeps them."""

    @property
    def starts_from_latents(self) -> bool:
        """Whether the codes do not stay uniform, as in the paper, until updates with them."""
        return self.config.starts_at > 0

    def __init__(self, config: VQGANConfig):
        super().__init__(config)
        # published weights have no counts, and need none
        self.register_buffer("usage", self.usage, persistent=config.moves_codes)

    def first_vectors(self) -> Tensor:
        config = self.config
        vectors = torch.empty(config.vocab_size, config.code_width)
        if config.quantizer == "gumbel":
            return vectors.normal_()  # as torch starts an embedding
        return self._normalized(vectors.uniform_(-1 / config.vocab_size, 1 / config.vocab_size))

    def loss(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        commitment = functional.mse_loss(points, codes.detach())
        loss = self.config.commitment_weight * commitment
        if self.config.codebook == "gradient":
            loss = loss + self.config.codebook_weight * functional.mse_loss(codes, points.detach())
        return loss, commitment

    def _normalized(self, vectors: Tensor) -> Tensor:
        return super()._normalized(vectors) if self.config.quantizer == "nearest" else vectors


class VQGAN(CodebookTokenizer):
    """Images (B, 3, H, W) <-> one grid of H / cell by W / cell tokens."""

    config_class = VQGANConfig

    def __init__(self, config: VQGANConfig, image_size: int):
        super().__init__(image_size)
        if image_size % config.cell:
            raise ValueError(
                f"image_size is {image_size}, no multiple of the {config.cell} pixels of a token's cell "
                f"(2 ** (levels of vqgan.multipliers {len(config.multipliers)} - 1))"
            )
        self.config = config
        self.vocab_size = config.vocab_size
        self.scales = (image_size // config.cell,)
        widths = [config.width * multiplier for multiplier in config.multipliers]
        shape = (widths, config.blocks, config.norm_groups, config.attention)
        self.encoder = build_encoder(*shape, config.latent_width, config.code_width)
        self.decoder = build_decoder(*shape, config.latent_width, config.code_width)
        if config.quantizer == "gumbel":
            self.encoder.add_module("to_logits", nn.Conv2d(config.code_width, config.vocab_size, 1))
        self.quantizer = Codebook(config)

    @property
    def needs_whole_weights(self) -> bool:
        """Whether codes start or move outside of the forward pass."""
        return self.config.moves_codes or self.config.starts_at > 0

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to token ids (B, L) int64 in raster order."""
        self.check_images(images)
        outputs = self._encode(images)
        # arg-max, no Gumbel noise: the generator learns the tokens it will see decoded
        is_gumbel = self.config.quantizer == "gumbel"
        tokens = outputs.argmax(dim=1) if is_gumbel else self.quantizer.tokens(outputs)
        return tokens.view(len(images), self.num_tokens)

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode token ids (B, L) int64 to images (B, 3, H, W) in [0, 1]."""
        self.check_tokens(tokens)
        return (self._decode(self.codebook[tokens]) / 2 + 0.5).clamp(0, 1)

    def starting_points(self, images: Tensor, number: int) -> Tensor:
        """The encoder's vectors (B * L, code_width) of images."""
        return self._encode(images)

    def loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """The pixels' error + the quantizer's loss, and their parts."""
        self.check_images(images)
        if self.config.decoder_only_from is not None and step >= self.config.decoder_only_from:
            return self.decoder_loss(images, step)
        outputs = self._encode(images)
        if self.config.quantizer == "gumbel":
            codes, quantizer_loss, logs = self._sampled(outputs, step, rng)
        elif step < self.config.starts_at:
            return self._reconstruction_loss(images, outputs, step)
        else:
            if self.config.moves_codes:
                self.keep_points(step, outputs.detach())
            codes, quantizer_loss, logs = self._rounded(outputs)
        reconstruction_loss, logged = self._reconstruction_loss(images, codes, step)
        return reconstruction_loss + quantizer_loss, {**logged, **logs}

    def _rounded(self, vectors: Tensor) -> tuple[Tensor, Tensor, Logs]:
        """The nearest codes (B * L, code_width), the quantizer's loss, and what to log."""
        tokens = self.quantizer.tokens(vectors.detach())
        codes = self.codebook[tokens]
        quantizer_loss, commitment_loss = self.quantizer.loss(vectors, codes)
        logs = {
            "commitment_loss": commitment_loss.detach(),
            **code_metrics(vectors, codes, tokens, self.vocab_size),
        }
        # straight through: the decoder sees the codes, and its gradient reaches the vectors
        return vectors + (codes - vectors).detach(), quantizer_loss, logs

    def _sampled(self, logits: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Logs]:
        """Codes of sampled tokens (B * L, code_width), the weighted KL, and what to log."""
        config = self.config
        temperature = cosine(step, config.temperature_start, config.temperature_end, config.temperature_steps)
        relaxed = gumbel_softmax(logits, temperature, rng)
        # straight through: the decoder sees one code, and its gradient reaches all logits and codes
        one_hot = functional.one_hot(relaxed.argmax(dim=1), self.vocab_size) + (relaxed - relaxed.detach())
        kl, usage = kl_and_usage(logits)
        kl_loss = kl.mean()
        logs = {
            "kl_loss": kl_loss.detach(),
            "temperature": temperature,
            "batch_perplexity": usage.detach().exp(),
        }
        return one_hot @ self.codebook, config.kl_weight * kl_loss, logs

    def _reconstruction_loss(self, images: Tensor, codes: Tensor, step: int) -> tuple[Tensor, Logs]:
        decoded = self._decode(codes)
        error = PIXEL_LOSSES[self.config.pixel_loss](decoded, 2 * images - 1)
        return self.image_loss(error, images, decoded / 2 + 0.5, step)

    def _encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the encoder's vectors (B * L, code_width), or logits (B * L, V), float32."""
        outputs = self.encoder(2 * images - 1).permute(0, 2, 3, 1)  # (B, h, w, channels)
        return self.quantizer.points(outputs.flatten(0, 2).float())

    def _decode(self, vectors: Tensor) -> Tensor:
        """Vectors of tokens (B * L, W) or (B, L, W) -> pixels (B, 3, H, W) float32, about in [-1, 1]."""
        grid = vectors.view(-1, self.scales[0], self.scales[0], self.config.code_width)
        return self.decoder(grid.permute(0, 3, 1, 2)).float()
