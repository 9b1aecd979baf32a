"""What the training of an image tokenizer or a decoder may add to the error of pixels: a perceptual distance, an adversary.

These parts live in training only: `model.training_only` is in a checkpoint, and never in the weights that are kept.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from thousandwords.core.config import check_minimums
from thousandwords.nn.adversary import Adversary, AdversaryConfig


@dataclass(frozen=True)
class PerceptualConfig:
    """The block `perceptual` of an image tokenizer or a decoder."""

    network: str  # the folder of a trained scorer, or a file of VGG-16's weights with torchvision's names
    lpips: str | None = None  # a file of LPIPS' linear weights, for VGG-16; null: all channels count the same
    weight: float = 1.0  # of the distance beside the error of pixels

    def __post_init__(self) -> None:
        check_minimums(self, "perceptual", weight=0)


@dataclass(frozen=True)
class ImageLossConfig:
    """The keys of the sections `image_tokenizer` and `decoder` of params.yaml for these parts; null: none."""

    adversary: AdversaryConfig | None = None
    perceptual: PerceptualConfig | None = None


class ImageLosses(nn.Module):
    """The error of pixels, and what the parts add; without any it is the error alone."""

    def __init__(self, config: ImageLossConfig | None = None, perceptual: nn.Module | None = None):
        super().__init__()
        self.config = config or ImageLossConfig()
        self.perceptual = perceptual
        self.adversary = Adversary(self.config.adversary) if self.config.adversary else None

    def forward(
        self, error: Tensor, images: Tensor, decoded: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and the values to log, from the error of pixels. `images` and `decoded` are (B, 3, H, W)
        in [0, 1], and `last_layer` is the weight of the decoder's last convolution."""
        loss, logged = error, {}
        if self.perceptual is not None:
            distance = self.perceptual(images, decoded)
            loss = loss + self.config.perceptual.weight * distance
            logged["perceptual_loss"] = distance.detach()
        if self.adversary is not None and self.adversary.takes_part(step):
            added, values = self.adversary(loss, images, decoded, last_layer, step)
            loss, logged = loss + added, logged | values
        return loss, logged


def kept_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model without those of its `training_only` parts, which live in a training alone."""
    return {name: tensor for name, tensor in model.state_dict().items() if not is_training_only(name)}


def is_training_only(name: str) -> bool:
    """Whether a parameter belongs to the parts that live in a training alone."""
    return name.startswith("training_only.")
