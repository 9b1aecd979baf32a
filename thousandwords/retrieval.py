"""How often the scorer finds the own caption of a picture, and the own picture of a caption: pure functions on arrays."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


def retrieval(pictures: Tensor, captions: Tensor) -> dict:
    """The block `retrieval` of metrics.json, of held-out pairs: unit vectors (N, D) of pictures and captions."""
    cosines = (pictures @ captions.T).numpy()
    both = {"captions_of_pictures": recall_at(cosines), "pictures_of_captions": recall_at(cosines.T)}
    return {"pictures": len(pictures), **both}


def recall_at(similarity: ArrayLike, counts: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """How often a row's own column is among its k nearest: similarity (B, B), pairs on the diagonal -> {"r1", "r5", "r10"}, 0..1.

    Of columns as near as its own one each may come first: a tie is worth the chance that a coin would give it, so that equal
    captions share what one of them would get.
    """
    similarity = np.asarray(similarity)
    own = similarity.diagonal()[:, None]
    nearer, level = (similarity > own).sum(axis=1), (similarity == own).sum(axis=1)
    return {f"r{k}": float(((k - nearer) / level).clip(0, 1).mean()) for k in counts}
