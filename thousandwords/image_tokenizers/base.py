"""What every image tokenizer promises: a picture becomes L words of a vocabulary, and words become a picture.

One file per kind; files whose name starts with an underscore are parts of a kind. A kind scales pixels as it
likes inside; outside, images are always float32 (B, 3, H, W) in [0, 1] and tokens int64 (B, L), the grids of
`scales` one after the other, each in raster order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

Logs = dict[str, Tensor | float]
PIXELS_AT_ONCE = 2**18  # the released dVAE takes about 10 kB for each
BYTES_PER_PIXEL = 10_000


class ImageTokenizer(nn.Module, ABC):
    """A kind is built as `Model(config, image_size)` and sets `vocab_size` and `scales`."""

    vocab_size: int  # how many words there are
    scales: tuple[int, ...]  # the side of each grid of tokens; (8,) is one grid of 64 words

    def __init__(self, image_size: int):
        super().__init__()
        self.image_size = image_size

    @property
    def num_tokens(self) -> int:
        """L, the words of one picture."""
        return sum(side * side for side in self.scales)

    @property
    def images_at_once(self) -> int:
        """How many pictures may be encoded or decoded together without filling a laptop's memory, or half of a GPU's.

        64 of 64 pixels a side on a CPU, 64 of 256 a side on a GPU of 80 GB.
        """
        device, pixels = next(self.parameters()).device, PIXELS_AT_ONCE
        if device.type == "cuda":
            pixels = max(pixels, torch.cuda.get_device_properties(device).total_memory // 2 // BYTES_PER_PIXEL)
        return max(1, min(64, pixels // self.image_size**2))

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """The picture's words: images (B, 3, H, W) in [0, 1] -> tokens (B, L) int64."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """The picture of the words: tokens (B, L) int64 -> images (B, 3, H, W) in [0, 1]."""

    @abstractmethod
    def loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """What training lowers at this step, a scalar, and the values worth logging."""

    def prepare(self, image_batches: Iterable[Tensor], rng: torch.Generator) -> None:
        """Looks at some training images once, before step 0. Most kinds have no need of it."""
        return None

    def check_images(self, images: Tensor) -> None:
        """Refuses what is not a batch of this tokenizer's pictures."""
        side, found = self.image_size, tuple(images.shape)
        if images.ndim != 4 or found[1:] != (3, side, side):
            raise ValueError(f"images have shape {found}; this tokenizer takes (B, 3, {side}, {side})")
        if images.dtype != torch.float32:
            raise ValueError(f"images are {images.dtype}; give float32 in [0, 1] (divide bytes by 255)")
        if images.is_meta:  # sizes without values, as check_params has them
            return
        lowest, highest = images.aminmax()
        if not (lowest >= 0 and highest <= 1):  # written so that NaN is refused too
            raise ValueError(f"images span [{lowest:.3g}, {highest:.3g}]; give float32 in [0, 1]")

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuses what is not a batch of this tokenizer's words."""
        found = tuple(tokens.shape)
        if tokens.ndim != 2 or found[1] != self.num_tokens:
            raise ValueError(f"tokens have shape {found}; this tokenizer takes (B, {self.num_tokens})")
        if tokens.dtype != torch.int64:
            raise ValueError(f"tokens are {tokens.dtype}; give torch.int64")
        lowest, highest = tokens.aminmax()
        if lowest < 0 or highest >= self.vocab_size:
            last = self.vocab_size - 1
            raise ValueError(f"tokens span [{lowest}, {highest}]; this vocabulary is 0 to {last}")
