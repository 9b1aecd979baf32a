"""The two encoders and decoders that the tokenizer can have: the dVAE's, small and quick, and VQGAN's, as VAR's."""

from dataclasses import dataclass

from torch import nn

from thousandwords.core.config import check_minimums, check_positive
from thousandwords.nn import conv_blocks, vqgan_trunk


@dataclass(frozen=True)
class DVAETrunk:
    """Sizes of the dVAE's trunk (nn/conv_blocks.py)."""

    width: int = 64  # channels of the finest grid; each coarser grid doubles them
    groups: int = 2  # residual groups; the grid halves between them
    blocks_per_group: int = 2
    decoder_width: int = 128  # channels of the decoder's first convolution
    stem_kernel: int = 3  # side of the encoder's first convolution
    patch: int = 4  # side of the square of pixels that the networks see as one position
    init_gain: float = 1.414  # deviation of first weights, times the root of their inputs
    residual_gain: float = 0.25  # of every residual branch

    pixel_range = 1.0  # pixels are in [-1/2, 1/2]

    def __post_init__(self) -> None:
        names = ("groups", "blocks_per_group", "decoder_width", "patch", "stem_kernel")
        check_minimums(self, "multi_scale.dvae", **dict.fromkeys(names, 1))
        check_positive(self, "multi_scale.dvae", "init_gain", "residual_gain")
        if self.width < 4 or self.width % 4:
            raise ValueError(
                f"multi_scale.dvae.width is {self.width}; a bottleneck is a quarter of it, so give a multiple of 4"
            )
        if self.stem_kernel % 2 == 0:
            raise ValueError(
                f"multi_scale.dvae.stem_kernel is {self.stem_kernel}; an odd side keeps the grid in place"
            )

    @property
    def cell(self) -> int:
        """Pixels on the side of one position of the latents."""
        return self.patch * 2 ** (self.groups - 1)

    def build(self, latent_width: int) -> tuple[nn.Module, nn.Module]:
        """(encoder, decoder)"""
        shape = (self.width, self.groups, self.blocks_per_group, self.residual_gain, latent_width, self.patch)
        encoder = conv_blocks.build_encoder(*shape, self.stem_kernel)
        decoder = conv_blocks.build_decoder(*shape, "input", self.decoder_width, maps=3)
        for network in (encoder, decoder):
            conv_blocks.initialize(network, self.init_gain)
        return encoder, decoder


@dataclass(frozen=True)
class VQGANTrunk:
    """Sizes of VQGAN's trunk (nn/vqgan_trunk.py); the defaults are those of VAR's published tokenizer."""

    width: int = 160  # channels of level 1, which has the side of the image
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # of each level's channels; the side halves between levels
    blocks: int = 2  # residual blocks of a level; the decoder has one more
    norm_groups: int = 32  # of every normalization
    attention: bool = True  # in the last level and in the middle

    pixel_range = 2.0  # pixels are in [-1, 1]

    def __post_init__(self) -> None:
        check_minimums(self, "multi_scale.vqgan", width=1, blocks=1, norm_groups=1)
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multi_scale.vqgan.multipliers is {list(self.multipliers)}; give each level 1 or more, as in [1, 2, 4]"
            )
        if self.width % self.norm_groups:
            raise ValueError(
                f"multi_scale.vqgan.width is {self.width}, no multiple of multi_scale.vqgan.norm_groups, {self.norm_groups}"
            )

    @property
    def cell(self) -> int:
        """Pixels on the side of one position of the latents."""
        return 2 ** (len(self.multipliers) - 1)

    def build(self, latent_width: int) -> tuple[nn.Module, nn.Module]:
        """(encoder, decoder). The layers next to the codes are 3 x 3 in VAR, where VQGAN has 1 x 1."""
        widths = [self.width * multiplier for multiplier in self.multipliers]
        shape = (widths, self.blocks, self.norm_groups, self.attention, latent_width, latent_width, 3)
        return vqgan_trunk.build_encoder(*shape), vqgan_trunk.build_decoder(*shape)
