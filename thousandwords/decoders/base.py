"""The Decoder contract: an image tokenizer's tokens and its own image of them become a better image.

A decoder is trained when the tokenizer is done (stage train_decoder). Tokens stay what they are, so every generator
of these tokens stays valid, and a better decoder can be trained at any time.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from thousandwords.nn.image_losses import ImageLosses

Logs = dict[str, Tensor | float]


class Decoder(nn.Module, ABC):
    """A kind is built as `Model(config, image_size, vocab_size, scales)`, with the sizes of the image tokenizer."""

    is_trainable = True  # False: nothing to train

    def __init__(self) -> None:
        super().__init__()
        self.training_only = ImageLosses()  # a training with an adversary puts its own here

    @abstractmethod
    def decode(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Token ids (B, L) int64 and the tokenizer's images of them (B, 3, H, W) float32 in [0, 1] -> images of the
        same shape and range. An image does not depend on the rest of its batch."""

    @abstractmethod
    def loss(
        self, images: Tensor, tokens: Tensor, decoded: Tensor, step: int, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """The training loss at this step, a scalar, and the values to log, for true `images` (B, 3, H, W) in [0, 1],
        their tokens (B, L), and the tokenizer's images of these, `decoded`."""
