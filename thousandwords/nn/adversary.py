"""An adversary of a decoder: a discriminator that learns to tell true images from decoded ones (arXiv 2012.09841,
section 3.1), on patches (1611.07004, section 3.2), with the hinge loss and the adaptive weight of VQGAN's code.

Its batch normalization is noise in small batches; here it is group normalization, or none.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thousandwords.core.config import check_minimums

GROUPS = 32  # of the group normalization
MAX_FACTOR = 8  # of `width`, in the widest layer
MAX_ADAPTIVE_WEIGHT = 1e4


@dataclass(frozen=True)
class AdversaryConfig:
    """The block `adversary` of an image tokenizer or a decoder. Lengths are in updates."""

    start: int  # the update from which it takes part, in a good state of the decoder
    ramp_steps: int = 0  # updates over which its weight rises from 0
    weight: float = 0.1  # of its loss beside the reconstruction
    # the weight times the norm of the reconstruction's gradient over that of the adversary's
    adaptive_weight: bool = True
    width: int = 64  # channels of the discriminator's first layer
    layers: int = 3  # that halve the side; more of them see larger patches
    norm: Literal["group", "none"] = "group"

    def __post_init__(self) -> None:
        check_minimums(self, "adversary", start=0, ramp_steps=0, weight=0, layers=1)
        if self.width < 1 or self.width % (GROUPS // 2):
            raise ValueError(
                f"adversary.width is {self.width}; it needs to be a multiple of {GROUPS // 2}, as its second layer has "
                f"twice the channels, in {GROUPS} groups"
            )

    def check_image_size(self, image_size: int) -> None:
        """Raise ValueError if the discriminator has no patch in images of that side."""
        smallest = 3 * 2**self.layers
        if image_size < smallest:
            raise ValueError(
                f"adversary.layers is {self.layers}, which needs images of {smallest} pixels or more, but image_size is "
                f"{image_size}. Set fewer adversary.layers"
            )


def build_discriminator(config: AdversaryConfig) -> nn.Sequential:
    """Pixels in [-1, 1] (B, 3, H, W) -> one number for each patch (B, 1, h, w), above 0 for a true image."""
    factors = [min(2**layer, MAX_FACTOR) for layer in range(config.layers + 1)]
    widths = [3, *(config.width * factor for factor in factors)]
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        stride = 2 if number < config.layers else 1
        layers.append(nn.Conv2d(inputs, outputs, 4, stride, padding=1))
        if number > 0 and config.norm == "group":
            layers.append(nn.GroupNorm(GROUPS, outputs))
        layers.append(nn.LeakyReLU(0.2))
    layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Adversary(nn.Module):
    """The discriminator, and both losses in one scalar: a single backward pass moves the decoder and the discriminator
    as the two alternating steps of the papers do, from the same decoded images."""

    def __init__(self, config: AdversaryConfig):
        super().__init__()
        self.config = config
        self.discriminator = build_discriminator(config)

    @property
    def has_frozen_steps(self) -> bool:
        """Whether its weights have no gradient at some updates: those before the start."""
        return self.config.start > 0

    def takes_part(self, step: int) -> bool:
        return self.training and step >= self.config.start

    def forward(
        self, reconstruction_loss: Tensor, images: Tensor, decoded: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to add, a scalar, and the values to log. `images` and `decoded` are (B, 3, H, W) in [0, 1], and
        `last_layer` is the weight of the decoder's last convolution."""
        adversary_loss = -self._judge_only(decoded).mean()
        weight = self.weight(reconstruction_loss, adversary_loss, last_layer, step)
        judged = self.discriminator(2 * torch.cat([images, decoded.detach()]) - 1).float()
        true, false = judged.chunk(2)
        discriminator_loss = ((1 - true).relu().mean() + (1 + false).relu().mean()) / 2
        return weight * adversary_loss + discriminator_loss, {
            "adversary_loss": adversary_loss.detach(),
            "adversary_weight": weight,
            "discriminator_loss": discriminator_loss.detach(),
            "discriminator_true": true.detach().mean(),
            "discriminator_decoded": false.detach().mean(),
        }

    def weight(
        self, reconstruction_loss: Tensor, adversary_loss: Tensor, last_layer: Tensor, step: int
    ) -> Tensor:
        """The weight of the adversary's loss at that step: a constant for the gradient."""
        weight = torch.tensor(self.config.weight, device=adversary_loss.device)
        if self.config.adaptive_weight:
            norms = [
                torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
                for loss in (reconstruction_loss, adversary_loss)
            ]
            weight = weight * (norms[0] / (norms[1] + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT)
        updates = step - self.config.start + 1
        return weight * min(1.0, updates / max(1, self.config.ramp_steps))

    def _judge_only(self, decoded: Tensor) -> Tensor:
        """What the discriminator says of decoded images, with weights that get no gradient."""
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, weights, (2 * decoded - 1,)).float()
