"""Training batches: (text, image tokens) for the generator, images and captions for the other models.

Caption, view and crop depend on (seed, epoch, row) only, so each of several processes can load its part of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from thousandwords.core.init_models import ModelConfig
from thousandwords.data.augmentation import Augmentation, tokenizer_crop
from thousandwords.data.images import to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.sampler import CAPTION, CROP, DROPOUT, VIEW, choose, epochs_and_rows
from thousandwords.data.token_shards import AnyTokenRows
from thousandwords.nn.image_losses import ImageLossConfig
from thousandwords.text.bpe import TextTokenizer


@dataclass(frozen=True)
class ImageConfig(ImageLossConfig):
    """The section `image_tokenizer` of params.yaml beside the model and its training."""

    augmentation: Augmentation = "none"  # none: the center square; paper: random crops and flips (listing 1)
    # of the model of `init`: none, it is copied; decoder, that trains further, and the images' tokens stay what they are
    tune: Literal["none", "decoder"] = "none"


@dataclass(frozen=True)
class DecoderConfig(ImageLossConfig, ModelConfig):
    """The section `decoder` of params.yaml beside the model and its training."""

    # all: candidates are ranked by the decoder's images; kept: by the tokenizer's, and only the kept ones are decoded by it
    paint: Literal["all", "kept"] = "all"


@dataclass(frozen=True)
class CaptionConfig:
    """The section `generator` of params.yaml beside the model and its training: how captions are loaded, and
    from which model it goes on."""

    bpe_dropout: float = 0.0  # probability to skip a merge in training; paper: 0.1 (arXiv 1910.13267)
    init: str | None = None  # a model to go on from: a folder or models:/thousandwords@alias
    # which of its parameters are trained: all, image_head (ANOLE, arXiv 2407.06135), or patterns of names
    tune: str | tuple[str, ...] = "all"

    def __post_init__(self) -> None:
        if isinstance(self.tune, str) and self.tune not in ("all", "image_head"):
            raise ValueError(
                f"generator.tune is {self.tune!r}; it can be: all, image_head, or a list of patterns of parameter "
                'names, such as ["layers.3.*", "image_output.*"]'
            )
        if self.tune != "all" and self.init is None:
            raise ValueError(
                f"generator.tune is {self.tune}, but generator.init is null, and a model that was never trained "
                "cannot keep its weights. Set generator.init, or generator.tune: all"
            )
        if not 0 <= self.bpe_dropout < 1:
            raise ValueError(f"generator.bpe_dropout is {self.bpe_dropout}; it needs to be in [0, 1)")


class TokenLoader:
    """Batches of (text, image tokens) for the generator, one caption and one view of each row per epoch."""

    def __init__(
        self, rows: AnyTokenRows, text_tokenizer: TextTokenizer, seed: int, bpe_dropout: float = 0.0
    ) -> None:
        self.rows, self.text_tokenizer, self.seed, self.bpe_dropout = rows, text_tokenizer, seed, bpe_dropout

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        """Text (B, T) int64, with −1 after the end of a caption, and image tokens (B, L) int64."""
        batch_rows = epochs_and_rows(positions, len(self.rows), self.seed, self.rows.mixture)
        self.rows.prefetch([row for _, row in batch_rows])
        captions = [_caption(self.rows.captions_of(row), self.seed, epoch, row) for epoch, row in batch_rows]
        views = [choose(self.rows.header.views, self.seed, VIEW, epoch, row) for epoch, row in batch_rows]
        tokens = self.rows.tokens_of([row for _, row in batch_rows], views).astype(np.int64)
        return self._encode(captions, batch_rows), torch.from_numpy(tokens)

    def _encode(self, captions: list[str], batch_rows: list[tuple[int, int]]) -> Tensor:
        if not self.bpe_dropout:
            return self.text_tokenizer.encode(captions)
        rngs = [np.random.default_rng([self.seed, DROPOUT, row, epoch]) for epoch, row in batch_rows]
        return self.text_tokenizer.encode_with_dropout(captions, self.bpe_dropout, rngs)


class ImageLoader:
    """Batches of images, center squares or random crops, and of their captions."""

    def __init__(self, reader: PairReader, seed: int, augmentation: Augmentation = "none") -> None:
        self.reader, self.seed, self.augmentation = reader, seed, augmentation

    def batch(self, positions: range) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1]."""
        batch_rows = epochs_and_rows(positions, len(self.reader), self.seed, self.reader.mixture)
        if self.augmentation == "paper":
            return to_float(self._crops(batch_rows))
        return to_float(self.reader.images([row for _, row in batch_rows]))

    def _crops(self, batch_rows: list[tuple[int, int]]) -> np.ndarray:
        size, images = self.reader.image_size, self.reader.whole_images([row for _, row in batch_rows])
        rngs = [np.random.default_rng([self.seed, CROP, row, epoch]) for epoch, row in batch_rows]
        return np.stack([tokenizer_crop(image, size, rng) for image, rng in zip(images, rngs, strict=True)])

    def captions(self, positions: range) -> list[str]:
        """One original caption for each image at these positions."""
        batch_rows = epochs_and_rows(positions, len(self.reader), self.seed, self.reader.mixture)
        return [_caption(self.reader.captions(row), self.seed, epoch, row) for epoch, row in batch_rows]


def _caption(captions: Sequence[str], seed: int, epoch: int, row: int) -> str:
    return captions[choose(len(captions), seed, CAPTION, epoch, row)]
