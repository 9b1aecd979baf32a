"""A distance of images by the features of a network that was trained for something else: LPIPS (arXiv 1801.03924,
section 3.2) on VGG-16, or on any network that returns feature maps."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

# of VGG-16 (arXiv 1409.1556, column D): the convolutions of its five parts; the side halves between parts
VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG_SMALLEST_IMAGE = 32  # pixels
SHIFT = (-0.030, -0.088, -0.188)  # LPIPS' scaling of pixels in [-1, 1]
SCALE = (0.458, 0.448, 0.450)


class VGG16(nn.Module):
    """The convolutions of VGG-16, with torchvision's names: images (B, 3, H, W) in [0, 1] -> the last feature maps of
    each part."""

    def __init__(self) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.ends: list[int] = []  # how many layers there are up to the end of each part
        inputs = 3
        for widths in VGG_WIDTHS:
            if self.ends:
                layers[str(len(layers))] = nn.MaxPool2d(2)
            for outputs in widths:
                layers[str(len(layers))] = nn.Conv2d(inputs, outputs, 3, padding=1)
                layers[str(len(layers))] = nn.ReLU()
                inputs = outputs
            self.ends.append(len(layers))
        self.features = nn.Sequential(layers)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        features, maps = (2 * images - 1 - self.shift) / self.scale, []
        for start, end in zip([0, *self.ends], self.ends, strict=False):
            features = self.features[start:end](features)
            maps.append(features)
        return maps


class PerceptualDistance(nn.Module):
    """The squared difference of feature maps, each position of length 1: a sum over channels and maps, a mean over
    positions and images. With `channel_weights` (one (C,) for each map) the sum over channels is weighted.

    `network` has `feature_maps(images) -> [(B, C, h, w), …]`. It is frozen, and always in evaluation mode.
    """

    def __init__(self, network: nn.Module, channel_weights: Sequence[Tensor] | None = None):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.num_weights = len(channel_weights or ())
        for number, weights in enumerate(channel_weights or ()):
            self.register_buffer(f"channel_weights_{number}", weights)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stay in evaluation mode: dropout and batch statistics of the network are no part of a distance."""
        return super().train(False)

    def forward(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Images and decoded images (B, 3, H, W) in [0, 1] -> a scalar."""
        with torch.no_grad():
            expected = self.network.feature_maps(images)
        total = torch.zeros((), device=images.device)
        for number, pair in enumerate(zip(self.network.feature_maps(decoded), expected, strict=True)):
            found, wanted = (functional.normalize(each.float(), dim=1, eps=1e-10) for each in pair)
            squares = (found - wanted).square()
            if self.num_weights:
                squares = squares * getattr(self, f"channel_weights_{number}")[:, None, None]
            total = total + squares.sum(dim=1).mean()
        return total
