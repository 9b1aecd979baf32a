"""The Scorer contract: how well a picture fits a caption, as one number, so that candidates can be ranked (paper §2.6)."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]  # the rows of one process -> those of all, in the order of ranks


def alone(rows: Tensor) -> Tensor:
    """The `Gather` of a single process."""
    return rows


class Scorer(nn.Module, ABC):
    """Images (B, 3, H, W) in [0, 1] and B captions -> B scores in [-1, 1]; a better fit has a higher score."""

    is_trainable = True  # False: pretrained weights, taken as they are
    needs_whole_batches = True  # the loss compares all pairs of a batch, so that one cannot be taken in parts, one by one

    @abstractmethod
    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """How well each image fits the caption beside it: (B,), a cosine."""

    @abstractmethod
    def embed_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of any size -> unit vectors (B, D), whose cosines tell how alike two pictures are."""

    @abstractmethod
    def loss(
        self, images: Tensor, captions: list[str], step: int, rng: torch.Generator, gather: Gather = alone
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of a batch of true pairs, and what to log beside it.

        Of several processes each gives its share of the batch, and `gather` brings together what is compared.
        """
