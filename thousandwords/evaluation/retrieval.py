"""How often the scorer finds the own caption of a picture, and the own picture of a caption: pure functions on arrays."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from thousandwords.evaluation import with_interval

COUNTS = (1, 5, 10)


def retrieval(pictures: Tensor, captions: Tensor, seed: int) -> dict:
    """The block `retrieval` of metrics.json, of held-out pairs: unit vectors (N, D) of pictures and captions."""
    cosines = (pictures @ captions.T).numpy()
    both = {"captions_of_pictures": recall_at(cosines, seed), "pictures_of_captions": recall_at(cosines.T, seed)}
    return {"pictures": len(pictures), **both}


def recall_at(similarity: ArrayLike, seed: int, counts: Sequence[int] = COUNTS) -> dict:
    """Recall at each k, 0..1, with its interval: similarity (B, B) -> {"r1", "r1_interval": [low, high], "r5", ...}."""
    found = {f"r{k}": found_at(similarity, k) for k in counts}
    return {key: value for name, rows in found.items() for key, value in with_interval(name, rows, seed).items()}


def found_at(similarity: ArrayLike, k: int) -> np.ndarray:
    """Whether a row's own column is among its k nearest: similarity (B, B), pairs on the diagonal -> (B,), 0..1.

    Of columns as near as its own one each may come first: a tie is worth the chance that a coin would give it, so that equal
    captions share what one of them would get.
    """
    similarity = np.asarray(similarity)
    own = similarity.diagonal()[:, None]
    nearer, level = (similarity > own).sum(axis=1), (similarity == own).sum(axis=1)
    return ((k - nearer) / level).clip(0, 1)
