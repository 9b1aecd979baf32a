"""No captioner: captions stay those of the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thousandwords.captioners.base import Captioner, Logs


@dataclass(frozen=True)
class NoCaptionerConfig:
    """It has no settings."""


class NoCaptioner(Captioner):
    """Every method raises NotImplementedError."""

    config_class = NoCaptionerConfig
    is_trainable = False

    def __init__(self, config: NoCaptionerConfig, image_size: int, text_vocab_size: int, text_length: int):
        super().__init__(image_size, text_vocab_size, text_length)
        self.config = config

    def loss(self, images: Tensor, text: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        raise NotImplementedError("a captioner of the kind none is not trained")

    def read_images(self, images: Tensor) -> Tensor:
        raise NotImplementedError("a captioner of the kind none reads no image")

    def sample(
        self, image_states: Tensor, rngs: Sequence[torch.Generator], top_p: float | None = None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a captioner of the kind none writes no caption")

    def log_probabilities(self, image_states: Tensor | None, text: Tensor) -> Tensor:
        raise NotImplementedError("a captioner of the kind none gives no probabilities")
