"""The ImageTokenizer contract: an image becomes L tokens of a vocabulary, and tokens become an image.

A kind is a folder with a model.py. Images are always float32 (B, 3, H, W) in [0, 1] and tokens int64 (B, L):
the grids of `scales` one after the other, each in raster order. Inside, a kind scales pixels as it likes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from thousandwords.core.config import check_minimums
from thousandwords.nn.image_losses import ImageLosses
from thousandwords.nn.quantizers import Gather, Quantizer

Logs = dict[str, Tensor | float]
MAX_BATCH_PIXELS = 2**18  # the released dVAE needs about 10 kB for each
BYTES_PER_PIXEL = 10_000
STARTING_POINTS = 16_384  # that the first codes are chosen from


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

    def muon_parameters(self) -> list[nn.Parameter]:
        """The kernels of all residual branches; not the layers at pixels, latents or codes, nor attention."""
        return [weight for name, weight in self.named_parameters() if ".path." in name and weight.ndim == 4]

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

    def after_update(self, step: int, rng: torch.Generator, gather: Gather) -> dict[str, float]:
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


class CodebookSettings:
    """What the settings of kinds with a codebook share; they are dataclasses with the fields that are used here."""

    @property
    def starts_at(self) -> int:
        """The first update that uses codes."""
        return self.first_steps_without_codes

    def restarts_codes(self, step: int) -> bool:
        """Whether codes that are not used move after this update."""
        is_on = self.restart_until is None or step < self.restart_until
        return is_on and self.restart_every is not None and (step + 1) % self.restart_every == 0

    def check_codebook(self, name: str) -> None:
        """Raise ValueError if a setting of the codebook in the section called `name` is out of range."""
        check_minimums(self, name, vocab_size=2, restart_every=1)
        check_minimums(self, name, commitment_weight=0, first_steps_without_codes=0)
        if not 0 <= self.codebook_decay < 1:
            raise ValueError(f"{name}.codebook_decay is {self.codebook_decay}; it needs to be in [0, 1)")


class CodebookTokenizer(ImageTokenizer):
    """A kind whose codes start from points of trained weights, and then move as its `quantizer` says.

    It sets `config` and `quantizer`, and gives `keep_points` the points of each batch.
    """

    needs_whole_weights = True  # codes start and move outside of the forward pass

    def __init__(self, image_size: int):
        super().__init__(image_size)
        self.first_images: Tensor | None = None  # of `prepare`, until the codes start
        # the last update, and its points by micro-batch and quantizer
        self.seen: tuple[int, list[tuple[Tensor, ...]]] = (0, [])

    @property
    def codebook(self) -> Tensor:
        """The vectors of the tokens (V, channels), of two grids with their own those of the fine one."""
        return self.quantizer.codebook

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """{what ends the names of its logs: quantizer}, in the order in which their codes start."""
        return {"": self.quantizer}

    @property
    def has_frozen_steps(self) -> bool:
        """Whether some weights have no gradient at some updates: the encoder's, if the decoder trains alone, and
        a learned codebook's before the codes are used."""
        config = self.config
        return config.decoder_only_from is not None or (
            config.codebook == "gradient" and config.starts_at > 0
        )

    @abstractmethod
    def starting_points(self, images: Tensor, number: int) -> Tensor:
        """The points (N, channels) of images that the codes of that quantizer start from."""

    def keep_points(self, step: int, *points: Tensor) -> None:
        """Keep the points (N, channels) of a micro-batch for `after_update`, one tensor per quantizer."""
        self.seen = (step, [*(self.seen[1] if self.seen[0] == step else []), points])

    @torch.no_grad()
    def prepare(self, image_batches: Iterable[Tensor], rng: torch.Generator) -> None:
        """Keep the images whose points the first codes are chosen from, by `after_update` or, without updates
        before, at once."""
        if not self.quantizer.starts_from_latents:
            return
        batches: list[Tensor] = []
        for batch in image_batches:
            batches.append(batch)
            if sum(map(len, batches)) * self.num_tokens >= STARTING_POINTS:
                break
        self.first_images = torch.cat(batches)
        if self.config.starts_at == 0:
            self._start_codes(rng)

    @torch.no_grad()
    def after_update(self, step: int, rng: torch.Generator, gather: Gather) -> Logs:
        """Start or move the codes after an update of the weights; the values to log. A collective call."""
        if step + 1 == self.config.starts_at and self.first_images is not None:
            self._start_codes(rng)
        seen_step, points = self.seen
        self.seen = (step, [])
        logs: Logs = {}
        if seen_step != step or not points:
            return logs
        by_quantizer = zip(*points, strict=True)
        for (suffix, quantizer), parts in zip(self.quantizers.items(), by_quantizer, strict=True):
            moved = quantizer.after_update(torch.cat(parts), step, rng, gather)
            logs |= {f"{name}{suffix}": value for name, value in moved.items()}
        return logs

    def _start_codes(self, rng: torch.Generator) -> None:
        batches = self.first_images.split(self.max_batch_size)
        for number, quantizer in enumerate(self.quantizers.values()):
            quantizer.start(torch.cat([self.starting_points(images, number) for images in batches]), rng)
        self.first_images = None
