"""Rectified flow (arXiv 2209.03003 §2) from the tokenizer's image plus noise, at time 1, to the true image, at time 0.

Between the two lies a straight line, and a U-Net that sees the point on it, the tokenizer's image and the tokens' vectors
predicts its end, the true image; that says the velocity too, so decoding follows it in a few Euler steps. With one step the
image is the mean of all images with these tokens, as the kind unet makes it; more steps choose one of these images, with
the fine detail that a mean lacks. An image's noise is a function of its tokens alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thousandwords.core.config import check_minimums
from thousandwords.decoders.base import Decoder, Logs
from thousandwords.nn.rectified_flow import noise_of, point_at, random_noise, random_times
from thousandwords.nn.token_unet import TokenUNet, TokenUNetConfig


@dataclass(frozen=True)
class FlowConfig(TokenUNetConfig):
    sigma: float = 0.1  # deviation of the noise on the tokenizer's image, of a color channel in [0, 1]
    steps: int = 4  # Euler steps from the noisy image to the decoded one

    def __post_init__(self) -> None:
        check_minimums(self, "flow", sigma=0, steps=1)
        self.check_sizes("flow")


class FlowDecoder(TokenUNet, Decoder):
    """Tokens (B, L) and the tokenizer's images (B, 3, H, W) in [0, 1] -> images (B, 3, H, W) in [0, 1]."""

    config_class = FlowConfig

    def __init__(self, config: FlowConfig, image_size: int, vocab_size: int, scales: tuple[int, ...]):
        super().__init__(config, "flow", image_size, vocab_size, scales, images_seen=2, has_time=True)

    def decode(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Token ids (B, L) int64 and the tokenizer's images of them (B, 3, H, W) -> images (B, 3, H, W) in [0, 1]."""
        current, steps = images + self.config.sigma * noise_of(tokens, images)[0], self.config.steps
        for step in range(steps):
            left = steps - step  # steps to the end of the line, this one included
            time = images.new_full((len(images),), left / steps)
            predicted = self._predict(tokens, images, current, time)
            current = predicted + (current - predicted) * ((left - 1) / left)
        return current.clamp(0, 1)

    def loss(
        self, images: Tensor, tokens: Tensor, decoded: Tensor, step: int, rng: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """The mean squared error of the predicted image, of a color channel in [0, 1], at a random time of each row."""
        start = decoded + self.config.sigma * random_noise(images, rng)
        time = random_times(images, rng)
        predicted = self._predict(tokens, decoded, point_at(time, start, images), time)
        squared = (predicted - images).square().mean()
        loss, logged = self.training_only(squared, images, predicted, self.output[-1].weight, step)
        return loss, {"squared_error": squared.detach(), **logged}

    def _predict(self, tokens: Tensor, images: Tensor, current: Tensor, time: Tensor) -> Tensor:
        """The true images (B, 3, H, W), not limited to [0, 1], from the tokenizer's `images` and the points `current` of
        the lines at each row's time (B,)."""
        return images + self.correction(tokens, torch.cat([images, current], dim=1), time)
