"""CLIP score of one candidate and of the best of N."""

from __future__ import annotations

import numpy as np

from thousandwords.evaluation.metrics import best_of_by_prompt, score_rates, with_interval


def clip_score(scores: np.ndarray, seed: int) -> dict:
    """The block `clip_score` of metrics.json, from raw cosines (P, N): `metrics.score_rates`, and both ends
    scaled.

    `scaled` is 100 max(cosine, 0), often called CLIP score; Hessel et al. (arXiv 2104.08718) use 2.5 instead
    of 100.
    """
    scaled = 100 * np.maximum(np.asarray(scores, dtype=np.float64), 0)
    ends = {"n1": 1, "best": np.shape(scores)[1]}
    figures: dict = {}
    for name, n in ends.items():
        figures |= with_interval(name, best_of_by_prompt(n, scores, scaled), seed)
    return {**score_rates(scores, np.random.default_rng(seed)), "scaled": figures}
