"""How often the scorer ranks an image's own caption first, and a caption's own image: pure functions on
arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from thousandwords.evaluation.metrics import with_interval

RECALL_AT = (1, 5, 10)


def retrieval(images: Tensor, captions: Tensor, seed: int) -> dict:
    """The block `retrieval` of metrics.json, from the unit vectors (N, D) of held-out images and captions."""
    similarity = (images @ captions.T).numpy()
    return {
        "pictures": len(images),
        "captions_of_pictures": recall_at(similarity, seed),
        "pictures_of_captions": recall_at(similarity.T, seed),
    }


def recall_at(similarity: ArrayLike, seed: int, ks: Sequence[int] = RECALL_AT) -> dict:
    """Recall at each k, 0..1, with its interval: similarity (B, B) -> {"r1", "r1_interval": [low, high],
    "r5", ...}."""
    figures: dict = {}
    for k in ks:
        figures |= with_interval(f"r{k}", hits_at(similarity, k), seed)
    return figures


def hits_at(similarity: ArrayLike, k: int) -> np.ndarray:
    """Whether each row's own column is among its k nearest: similarity (B, B), pairs on the diagonal -> (B,),
    0..1.

    Columns with the same similarity as the own one count as in random order: a tie is worth the chance to be
    among the first k, so that equal captions share one hit.
    """
    similarity = np.asarray(similarity)
    own = similarity.diagonal()[:, None]
    nearer, equal = (similarity > own).sum(axis=1), (similarity == own).sum(axis=1)
    return ((k - nearer) / equal).clip(0, 1)
