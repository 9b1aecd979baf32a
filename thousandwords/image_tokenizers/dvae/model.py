"""The discrete VAE of DALL-E: an image as a grid of tokens (arXiv 2102.12092, section 2.1 and appendix A).

The defaults are the paper's: Gumbel-softmax relaxation, logit-Laplace likelihood, KL to the uniform prior,
cosine schedules. The settings named "off in the paper" are additions, to train in minutes instead of weeks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.image_tokenizers.base import ImageTokenizer, Logs
from thousandwords.image_tokenizers.dvae.codebook_init import init_codebook
from thousandwords.image_tokenizers.dvae.float16 import decode_float16, encode_float16, is_frozen_on_gpu
from thousandwords.image_tokenizers.dvae.logit_laplace import (
    log_likelihood,
    normal_log_likelihood,
    to_images,
    to_model_range,
)
from thousandwords.nn.conv_blocks import build_decoder, build_encoder, initialize
from thousandwords.nn.gumbel_softmax import gumbel_softmax, kl_and_usage
from thousandwords.nn.schedules import cosine


@dataclass(frozen=True)
class DVAEConfig:
    vocab_size: int = 8192  # tokens in the codebook
    width: int = 256  # channels of the finest grid; each coarser grid doubles them
    groups: int = 4  # residual groups; the grid halves between them
    blocks_per_group: int = 2
    codebook_width: int = 128  # channels of a token's vector
    stem_kernel: int = 7  # side of the encoder's first convolution
    kl_weight: float = 6.6  # final beta of the KL to the uniform prior
    kl_steps: int = 5000  # updates over which beta rises from 0
    temperature_start: float = 1.0  # tau of the Gumbel-softmax
    temperature_end: float = 1 / 16
    temperature_steps: int = 150_000  # updates over which tau falls
    # off in the paper
    patch: int = 1  # side of the square of pixels that the networks see as one position
    init_gain: float = 1.0  # deviation of first weights, times the root of their inputs; Kaiming's is 1.414
    # of every residual branch; null: 1 / (number of blocks)^2, the paper's
    residual_gain: float | None = None
    pixel_deviation: float | None = None  # of a normal likelihood of pixels instead of logit-Laplace
    noise_end: float = 1.0  # scale of the Gumbel noise when tau has fallen; 0 ends on arg-max tokens
    usage_entropy_weight: float = 0.0  # bonus on the entropy of a batch's average token, in nats
    codebook_init_dims: int | None = None  # tokens start as points of a cube of this many dimensions
    codebook_init_images: int = 200  # training images that place the cube
    decoder_only_from: int | None = None  # from this update the decoder trains alone, on arg-max tokens

    def __post_init__(self) -> None:
        check_minimums(self, "dvae", vocab_size=2, groups=1, blocks_per_group=1, codebook_width=1)
        check_minimums(self, "dvae", patch=1, stem_kernel=1, codebook_init_images=1, kl_weight=0, kl_steps=0)
        check_minimums(self, "dvae", temperature_steps=0, usage_entropy_weight=0, noise_end=0)
        check_positive(self, "dvae", "temperature_start", "temperature_end")
        check_positive(self, "dvae", "init_gain", "residual_gain", "pixel_deviation")
        if self.width < 4 or self.width % 4:
            raise ValueError(
                f"dvae.width is {self.width}; a bottleneck is a quarter of it, so give a multiple of 4"
            )
        if self.stem_kernel % 2 == 0:
            raise ValueError(f"dvae.stem_kernel is {self.stem_kernel}; an odd side keeps the grid in place")
        if self.codebook_init_dims is not None and not 1 <= self.codebook_init_dims <= self.width:
            raise ValueError(
                f"dvae.codebook_init_dims is {self.codebook_init_dims}; give 1 to dvae.width, {self.width}"
            )

    @property
    def path_gain(self) -> float:
        """The factor on every residual branch."""
        if self.residual_gain is not None:
            return self.residual_gain
        return (self.groups * self.blocks_per_group) ** -2

    @property
    def cell(self) -> int:
        """Pixels on the side of one token's cell."""
        return self.patch * 2 ** (self.groups - 1)


class DiscreteVAE(ImageTokenizer):
    """Images (B, 3, H, W) <-> one grid of H / cell by W / cell tokens."""

    config_class = DVAEConfig

    def __init__(self, config: DVAEConfig, image_size: int):
        super().__init__(image_size)
        if image_size % config.cell:
            raise ValueError(
                f"image_size is {image_size}, no multiple of the {config.cell} pixels of a token's cell "
                f"(dvae.patch {config.patch} * 2 ** (dvae.groups {config.groups} - 1))"
            )
        self.config = config
        self.vocab_size = config.vocab_size
        self.scales = (image_size // config.cell,)
        shape = (config.width, config.groups, config.blocks_per_group, config.path_gain, config.vocab_size)
        shape = (*shape, config.patch)
        self.encoder = build_encoder(*shape, config.stem_kernel)
        # the codebook is the first convolution's weight; the maps are mu and ln b of every color channel
        self.decoder = build_decoder(*shape, "codebook", config.codebook_width, maps=6)
        initialize(self, config.init_gain)
        self.to(memory_format=torch.channels_last)  # faster on a CPU

    @property
    def codebook(self) -> Tensor:
        """The vectors of the tokens (V, codebook_width): the weight of the decoder's first convolution."""
        return self.decoder.codebook.weight.flatten(1).T

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to token ids (B, L) int64 in raster order."""
        self.check_images(images)
        tokens = encode_float16(self.encoder, to_model_range(images)) if is_frozen_on_gpu(self) else None
        # arg-max, no Gumbel noise: the generator learns the tokens it will see decoded (paper, section 2.2)
        return self._logits(images).argmax(dim=-1).flatten(1) if tokens is None else tokens

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode token ids (B, L) int64 to images (B, 3, H, W) in [0, 1]."""
        self.check_tokens(tokens)
        maps = decode_float16(self.decoder, tokens, self.scales[0]) if is_frozen_on_gpu(self) else None
        return to_images(self._decode(self._one_hot(tokens))[0] if maps is None else maps[:, :3])

    @torch.no_grad()
    def prepare(self, image_batches: Iterable[Tensor], rng: torch.Generator) -> None:
        """Initialize the codebook from the untrained encoder's features, with `codebook_init_dims` only."""
        if self.config.codebook_init_dims is None:
            return
        images = take_images(image_batches, self.config.codebook_init_images).to(self.codebook.device)
        features = self.encoder[:-1](to_model_range(images)).permute(0, 2, 3, 1).flatten(0, 2)  # (B * L, C)
        init_codebook(
            self.encoder.output, self.decoder.codebook, features, self.config.codebook_init_dims, rng
        )

    def loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """The negative evidence lower bound per color channel of a pixel, in nats, and its parts."""
        self.check_images(images)
        if self.config.decoder_only_from is not None and step >= self.config.decoder_only_from:
            return self.decoder_loss(images, step)
        return self._relaxed_loss(images, step, rng)

    def decoder_loss(self, images: Tensor, step: int) -> tuple[Tensor, Logs]:
        """The decoder alone, on the arg-max tokens that the generator is trained on. Not in the paper."""
        with torch.no_grad():
            tokens = self._logits(images).argmax(dim=-1).flatten(1)
        return self._reconstruction_loss(images, self._one_hot(tokens), step)

    @property
    def has_frozen_steps(self) -> bool:
        """Whether some weights have no gradient at some updates: the encoder's, if the decoder trains alone."""
        return self.config.decoder_only_from is not None

    def _relaxed_loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """The paper's loss: -(log-likelihood) + beta * KL, with tokens sampled by Gumbel-softmax."""
        config = self.config
        temperature = cosine(step, config.temperature_start, config.temperature_end, config.temperature_steps)
        noise = cosine(step, 1.0, config.noise_end, config.temperature_steps)
        kl_weight = cosine(step, 0.0, config.kl_weight, config.kl_steps)
        logits = self._logits(images)
        relaxed_tokens = gumbel_softmax(logits, temperature, rng, noise)
        reconstruction_loss, logged = self._reconstruction_loss(images, relaxed_tokens, step)
        # the ordinary categorical's KL, although the tokens are relaxed (an author's answer)
        kl, usage = kl_and_usage(logits)
        kl_loss = kl.sum() / images.numel()
        loss = reconstruction_loss + kl_weight * kl_loss - config.usage_entropy_weight * usage
        return loss, {
            **logged,
            "kl_loss": kl_loss.detach(),
            "kl_weight": kl_weight,
            "temperature": temperature,
            "batch_perplexity": usage.detach().exp(),
        }

    def _reconstruction_loss(self, images: Tensor, one_hot: Tensor, step: int) -> tuple[Tensor, Logs]:
        mu, log_width = self._decode(one_hot)
        if self.config.pixel_deviation is not None:
            likelihood = normal_log_likelihood(images, mu, self.config.pixel_deviation)
        else:
            likelihood = log_likelihood(images, mu, log_width)
        return self.image_loss(-likelihood.mean(), images, to_images(mu), step)

    def _logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, V) float32."""
        pixels = to_model_range(images).contiguous(memory_format=torch.channels_last)
        return self.encoder(pixels).permute(0, 2, 3, 1).float()

    def _one_hot(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, h, w, V) float32."""
        return functional.one_hot(tokens.view(-1, self.scales[0], self.scales[0]), self.vocab_size).float()

    def _decode(self, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot or relaxed tokens (B, h, w, V) -> mu and ln b, each (B, 3, H, W) float32."""
        return self.decoder(one_hot.permute(0, 3, 1, 2)).float().chunk(2, dim=1)


def take_images(image_batches: Iterable[Tensor], count: int) -> Tensor:
    """The first `count` images of the batches, or all when there are fewer: (count, 3, H, W)."""
    batches: list[Tensor] = []
    for batch in image_batches:
        batches.append(batch)
        if sum(map(len, batches)) >= count:
            break
    return torch.cat(batches)[:count]
