"""A U-Net that corrects the tokenizer's image in one step, from that image and the tokens' vectors at every level.

Squared error makes the mean of all images with these tokens; the absolute error beside it keeps edges. No paper is
followed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thousandwords.core.config import check_minimums
from thousandwords.decoders.base import Decoder, Logs
from thousandwords.nn.token_unet import TokenUNet, TokenUNetConfig


@dataclass(frozen=True)
class UNetConfig(TokenUNetConfig):
    absolute_error_weight: float = 0.1  # of the mean absolute error, beside the mean squared error

    def __post_init__(self) -> None:
        check_minimums(self, "unet", absolute_error_weight=0)
        self.check_sizes("unet")


class UNetDecoder(TokenUNet, Decoder):
    """Tokens (B, L) and the tokenizer's images (B, 3, H, W) in [0, 1] -> images (B, 3, H, W) in [0, 1]."""

    config_class = UNetConfig

    def __init__(self, config: UNetConfig, image_size: int, vocab_size: int, scales: tuple[int, ...]):
        super().__init__(config, "unet", image_size, vocab_size, scales)

    def decode(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Token ids (B, L) int64 and the tokenizer's images of them (B, 3, H, W) -> images (B, 3, H, W) in [0, 1]."""
        return (images + self.correction(tokens, images)).clamp(0, 1)

    def loss(
        self, images: Tensor, tokens: Tensor, decoded: Tensor, step: int, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """The mean squared error of a color channel in [0, 1], plus `absolute_error_weight` times the absolute one."""
        corrected = decoded + self.correction(tokens, decoded)
        error = corrected - images
        squared, absolute = error.square().mean(), error.abs().mean()
        loss = squared + self.config.absolute_error_weight * absolute
        loss, logged = self.training_only(loss, images, corrected, self.output[-1].weight, step)
        return loss, {"squared_error": squared.detach(), "absolute_error": absolute.detach(), **logged}
