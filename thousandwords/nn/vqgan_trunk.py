"""The encoder and the decoder of VQGAN (arXiv 2012.09841, appendix table 7), which LlamaGen and VAR kept.

Level 1 has the side of the image, and each level after it half the side of the one before. In names of layers,
levels count from the finest in the decoder too.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 3
EPSILON = 1e-6  # of group normalization; torch's own is 1e-5

Layers = OrderedDict[str, nn.Module]


def convolution(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def norm(groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=EPSILON)


class Block(nn.Module):
    """identity(x) + path(x), the path twice (norm, swish, convolution)."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.identity = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        layers: Layers = OrderedDict()
        for number, channels in enumerate((inputs, outputs), start=1):
            layers[f"norm_{number}"] = norm(groups, channels)
            layers[f"swish_{number}"] = nn.SiLU()
            layers[f"conv_{number}"] = convolution(channels, outputs)
        self.path = nn.Sequential(layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return self.identity(features) + self.path(features)


class Attention(nn.Module):
    """x + attention(norm(x)), one head as wide as x, between all positions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = norm(groups, channels)
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        normed = self.norm(features)
        layers = (self.query, self.key, self.value)
        query, key, value = (layer(normed).flatten(2).transpose(1, 2) for layer in layers)  # (B, h * w, C)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return features + self.output(mixed.transpose(1, 2).reshape(features.shape))


def half_size(channels: int) -> nn.Sequential:
    """A convolution of stride 2, with zeros at the right and at the bottom only."""
    convolve = nn.Conv2d(channels, channels, 3, stride=2)
    return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=convolve))


def double_size(channels: int) -> nn.Sequential:
    enlarge = nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Sequential(OrderedDict(enlarge=enlarge, conv=convolution(channels, channels)))


def middle(channels: int, groups: int, attention: bool) -> Layers:
    """The layers of the coarsest grid between the levels and the latents."""
    layers: Layers = OrderedDict(middle_block_1=Block(channels, channels, groups))
    if attention:
        layers["middle_attention"] = Attention(channels, groups)
    layers["middle_block_2"] = Block(channels, channels, groups)
    return layers


def level(number: int, inputs: int, outputs: int, blocks: int, groups: int, attention: bool) -> Layers:
    """The blocks of a level, each with attention after it where that is on."""
    layers: Layers = OrderedDict()
    for block in range(1, blocks + 1):
        layers[f"level_{number}_block_{block}"] = Block(inputs if block == 1 else outputs, outputs, groups)
        if attention:
            layers[f"level_{number}_attention_{block}"] = Attention(outputs, groups)
    return layers


def last_layers(inputs: int, outputs: int, groups: int) -> Layers:
    return OrderedDict(norm=norm(groups, inputs), swish=nn.SiLU(), output=convolution(inputs, outputs))


def build_encoder(
    widths: list[int],
    blocks: int,
    groups: int,
    attention: bool,
    latent_width: int,
    code_width: int,
    code_kernel: int = 1,
) -> nn.Sequential:
    """Pixels in [-1, 1] (B, 3, H, W) -> vectors (B, code_width, h, w). `widths` are the levels' channels; with
    `attention`, the last level and the middle have it. `code_kernel` is the side of the layer next to the codes."""
    layers: Layers = OrderedDict(input=convolution(CHANNELS, widths[0]))
    for number, (inputs, outputs) in enumerate(zip([widths[0], *widths], widths, strict=False), start=1):
        is_last = number == len(widths)
        layers |= level(number, inputs, outputs, blocks, groups, attention and is_last)
        if not is_last:
            layers[f"level_{number}_resize"] = half_size(outputs)
    layers |= middle(widths[-1], groups, attention)
    layers |= last_layers(widths[-1], latent_width, groups)
    layers["to_code"] = convolution(latent_width, code_width, code_kernel)
    return nn.Sequential(layers)


def build_decoder(
    widths: list[int],
    blocks: int,
    groups: int,
    attention: bool,
    latent_width: int,
    code_width: int,
    code_kernel: int = 1,
) -> nn.Sequential:
    """Vectors of tokens (B, code_width, h, w) -> pixels (B, 3, H, W), about in [-1, 1]. A level has one block more
    than the encoder's."""
    layers: Layers = OrderedDict(from_code=convolution(code_width, latent_width, code_kernel))
    layers["input"] = convolution(latent_width, widths[-1])
    layers |= middle(widths[-1], groups, attention)
    for number in range(len(widths), 0, -1):
        is_last = number == len(widths)
        inputs, outputs = widths[min(number, len(widths) - 1)], widths[number - 1]
        layers |= level(number, inputs, outputs, blocks + 1, groups, attention and is_last)
        if number > 1:
            layers[f"level_{number}_resize"] = double_size(outputs)
    layers |= last_layers(widths[0], CHANNELS, groups)
    return nn.Sequential(layers)
