"""An image tokenizer's encoder and decoder: residual groups with pooling or up-sampling between them.

After the released dVAE of arXiv 2102.12092. `patch` is an addition: with 1 (the released code) the first
convolution sees pixels; with more, patch * patch pixels become channels first. Shapes: images (B, 3, H, W),
and on the grid (B, C, h, w) with H = h * patch * 2 ** (groups - 1): the dVAE's logits and one-hot tokens (C is
the vocabulary), or latents.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

CHANNELS = 3
Kernels = tuple[int, ...]
Layers = OrderedDict[str, nn.Module]

ENCODER_KERNELS = (3, 3, 3, 1)
DECODER_KERNELS = (1, 3, 3, 3)


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class Block(nn.Module):
    """identity(x) + gain * path(x), the path a bottleneck of four (ReLU, convolution)."""

    def __init__(self, inputs: int, outputs: int, kernels: Kernels, gain: float):
        super().__init__()
        self.gain = gain
        self.identity = convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths = [inputs, outputs // 4, outputs // 4, outputs // 4, outputs]
        layers: Layers = OrderedDict()
        for number, kernel in enumerate(kernels, start=1):
            layers[f"relu_{number}"] = nn.ReLU()
            layers[f"conv_{number}"] = convolution(widths[number - 1], widths[number], kernel)
        self.path = nn.Sequential(layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return self.identity(features) + self.gain * self.path(features)


def add_groups(
    layers: Layers, widths: list[int], blocks: int, kernels: Kernels, gain: float, resize: nn.Module
) -> None:
    """Add one group of blocks per step of `widths`, with `resize` between groups."""
    groups = len(widths) - 1
    for group in range(groups):
        for block in range(blocks):
            inputs = widths[group] if block == 0 else widths[group + 1]
            layers[f"group_{group + 1}_block_{block + 1}"] = Block(inputs, widths[group + 1], kernels, gain)
        if group < groups - 1:
            layers[f"group_{group + 1}_resize"] = resize


def build_encoder(
    width: int, groups: int, blocks: int, gain: float, outputs: int, patch: int, stem_kernel: int
) -> nn.Sequential:
    """Pixels in the model's range (B, 3, H, W) -> logits or latents (B, outputs, h, w)."""
    widths = [width * 2**group for group in range(groups)]
    layers: Layers = OrderedDict()
    layers["to_cells"] = nn.PixelUnshuffle(patch)
    layers["input"] = convolution(CHANNELS * patch**2, width, stem_kernel)
    add_groups(layers, [width, *widths], blocks, ENCODER_KERNELS, gain, nn.MaxPool2d(2))
    layers["relu"] = nn.ReLU()
    layers["output"] = convolution(widths[-1], outputs, 1)
    return nn.Sequential(layers)


def build_decoder(
    width: int,
    groups: int,
    blocks: int,
    gain: float,
    inputs: int,
    patch: int,
    first: str,
    first_width: int,
    maps: int,
) -> nn.Sequential:
    """Tokens, one-hot or relaxed, or their vectors (B, inputs, h, w) -> maps of every pixel (B, maps, H, W).

    `first` is the name of the first convolution, `first_width` its channels.
    """
    widths = [width * 2**group for group in reversed(range(groups))]
    layers: Layers = OrderedDict()
    layers[first] = convolution(inputs, first_width, 1)
    enlarge = nn.Upsample(scale_factor=2, mode="nearest")
    add_groups(layers, [first_width, *widths], blocks, DECODER_KERNELS, gain, enlarge)
    layers["relu"] = nn.ReLU()
    layers["output"] = convolution(width, maps * patch**2, 1)
    layers["to_pixels"] = nn.PixelShuffle(patch)
    return nn.Sequential(layers)


@torch.no_grad()
def initialize(network: nn.Module, gain: float) -> None:
    """Weights N(0, gain / sqrt(fan_in)), biases 0: gain 1 in the released code, sqrt(2) is Kaiming's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * math.prod(module.kernel_size)
            module.weight.normal_(0, gain / math.sqrt(fan_in))
            module.bias.zero_()
