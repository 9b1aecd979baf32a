"""The ImageTokenizer contract: an image becomes L tokens of a vocabulary, and tokens become an image.

A kind is a folder with a model.py. Images are always float32 (B, 3, H, W) in [0, 1] and tokens int64 (B, L):
the grids of `scales` one after the other, each in raster order. Inside, a kind scales pixels as it likes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from thousandwords.nn.image_losses import ImageLosses

Logs = dict[str, Tensor | float]
MAX_BATCH_PIXELS = 2**18  # the released dVAE needs about 10 kB for each
BYTES_PER_PIXEL = 10_000


class ImageTokenizer(nn.Module, ABC):
    """A kind is built as `Model(config, image_size)` and sets `vocab_size` and `scales`."""

    vocab_size: int  # number of different tokens
    scales: tuple[int, ...]  # the side of each grid of tokens; (8,) is one grid of 64 tokens

    def __init__(self, image_size: int):
        super().__init__()
        self.image_size = image_size
        self.training_only = ImageLosses()  # a training with an adversary puts its own here

    @property
    def num_tokens(self) -> int:
        """L, the number of tokens of one image."""
        return sum(side * side for side in self.scales)

    @property
    def max_batch_size(self) -> int:
        """How many images fit a laptop's memory, or half of a GPU's, when encoded or decoded at once."""
        device, pixels = next(self.parameters()).device, MAX_BATCH_PIXELS
        if device.type == "cuda":
            gpu_memory = torch.cuda.get_device_properties(device).total_memory
            pixels = max(pixels, gpu_memory // 2 // BYTES_PER_PIXEL)
        return max(1, min(64, pixels // self.image_size**2))

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to token ids (B, L) int64."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Decode token ids (B, L) int64 to images (B, 3, H, W) in [0, 1]."""

    def images_so_far(self, tokens: Tensor) -> list[Tensor]:
        """The images (B, 3, H, W) in [0, 1] after each grid of `scales`, the last that of `decode`; a kind with several
        grids has its own."""
        return [self.decode(tokens)]

    @abstractmethod
    def loss(self, images: Tensor, step: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        """The training loss at this step, a scalar, and the values to log."""

    def decoder_loss(self, images: Tensor, step: int) -> tuple[Tensor, Logs]:
        """The training loss of the decoder alone, on the hard tokens of the images, and the values to log: what
        the images' tokens are does not change. Its weights are the parameters `decoder.*`.

        Of a kind with a codebook; another has its own."""
        with torch.no_grad():
            codes = self.code_vectors(self.encode(images))
        return self._reconstruction_loss(images, codes, step)

    def image_loss(self, error: Tensor, images: Tensor, decoded: Tensor, step: int) -> tuple[Tensor, Logs]:
        """The error of pixels, with what `training_only` adds to it, and the values to log. `images` and `decoded` are
        (B, 3, H, W) in [0, 1]; the decoder's last convolution is called `decoder.output`."""
        loss, logged = self.training_only(error, images, decoded, self.decoder.output.weight, step)
        return loss, {"reconstruction_loss": error.detach(), **logged}

    def code_vectors(self, tokens: Tensor) -> Tensor:
        """The vectors (B, L, channels) of tokens (B, L), of a kind with a codebook."""
        return self.codebook[tokens]

    def prepare(self, image_batches: Iterable[Tensor], rng: torch.Generator) -> None:
        """Set first weights from some training images, once, before step 0. Most kinds need nothing here."""
        return None

    def after_update(
        self, step: int, rng: torch.Generator, gather: Callable[[Tensor], list[Tensor]]
    ) -> dict[str, float]:
        """Change what is not learned by gradient, after each update of the weights; the values to log.

        All processes call it with equal random generators; `gather` returns a tensor of every process, in the
        order of ranks. The same changes have to follow on every process. Most kinds need nothing here.
        """
        return {}

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError unless this is a batch of this tokenizer's images."""
        side, shape = self.image_size, tuple(images.shape)
        if images.ndim != 4 or shape[1:] != (3, side, side):
            raise ValueError(f"images have shape {shape}; this tokenizer takes (B, 3, {side}, {side})")
        if images.dtype != torch.float32:
            raise ValueError(f"images are {images.dtype}; give float32 in [0, 1] (divide bytes by 255)")
        if images.is_meta:  # has a shape but no values (check_params)
            return
        lowest, highest = images.aminmax()
        if not (lowest >= 0 and highest <= 1):  # written so that NaN is rejected too
            raise ValueError(f"images span [{lowest:.3g}, {highest:.3g}]; give float32 in [0, 1]")

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise ValueError unless this is a batch of this tokenizer's tokens."""
        shape = tuple(tokens.shape)
        if tokens.ndim != 2 or shape[1] != self.num_tokens:
            raise ValueError(f"tokens have shape {shape}; this tokenizer takes (B, {self.num_tokens})")
        if tokens.dtype != torch.int64:
            raise ValueError(f"tokens are {tokens.dtype}; give torch.int64")
        lowest, highest = tokens.aminmax()
        if lowest < 0 or highest >= self.vocab_size:
            last = self.vocab_size - 1
            raise ValueError(f"tokens span [{lowest}, {highest}]; this vocabulary is 0 to {last}")
