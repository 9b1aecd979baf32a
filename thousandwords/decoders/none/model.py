"""No decoder of its own: images stay those of the image tokenizer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from thousandwords.decoders.base import Decoder, Logs


@dataclass(frozen=True)
class NoDecoderConfig:
    """It has no settings."""


class NoDecoder(Decoder):
    """The tokenizer's images, unchanged."""

    config_class = NoDecoderConfig
    is_trainable = False

    def __init__(self, config: NoDecoderConfig, image_size: int, vocab_size: int, scales: tuple[int, ...]):
        super().__init__()
        self.config = config

    def decode(self, tokens: Tensor, images: Tensor) -> Tensor:
        """The images as they are."""
        return images

    def loss(
        self, images: Tensor, tokens: Tensor, decoded: Tensor, step: int, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """Raises NotImplementedError."""
        raise NotImplementedError("a decoder of the kind none is not trained")
