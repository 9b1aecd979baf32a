"""The Scorer contract: how well an image fits a caption, as one number for ranking (paper §2.6)."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]  # the rows of one process -> those of all, in the order of ranks


def no_gather(rows: Tensor) -> Tensor:
    """The `Gather` of a single process."""
    return rows


class Scorer(nn.Module, ABC):
    """Images (B, 3, H, W) in [0, 1] and B captions -> B scores in [-1, 1]; higher is a better fit."""

    is_trainable = True  # False: pretrained weights, used as they are
    needs_whole_batches = True  # the loss compares all pairs of a batch, so micro-batches are impossible

    @abstractmethod
    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """The cosine of each image with its caption: (B,)."""

    @abstractmethod
    def embed_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of any size -> unit vectors (B, D); their cosines are similarities."""

    @abstractmethod
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] of any size -> what the image network sees at some depths: (B, C, h, w) each."""

    @abstractmethod
    def loss(
        self, images: Tensor, captions: list[str], step: int, rng: torch.Generator, gather: Gather = no_gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of a batch of true pairs, and the values to log.

        With several processes each passes its part of the batch, and `gather` collects what is compared.
        """
