"""Best of n, caption match, CLIP score and retrieval, with their intervals: pure functions on arrays.

Best of n is the paper's reranking by a contrastive scorer (arXiv 2102.12092, §2.6).

Axes: P prompts, N candidates per prompt, B images with their captions.
"""

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

SCENE_ATTRIBUTES = ("colour", "background", "relation")  # without shape and size, which are harder to read
RECALL_AT = (1, 5, 10)
BOOTSTRAP_ROUNDS, TAIL = 2000, (1 - 0.95) / 2


def bootstrap_interval(values: ArrayLike, rng: np.random.Generator) -> list[float]:
    """The 95% interval [low, high] of the mean of values (P,), by percentile bootstrap over them."""
    values = np.asarray(values, dtype=np.float64)
    rounds = range(BOOTSTRAP_ROUNDS)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in rounds])
    return np.quantile(means, [TAIL, 1 - TAIL]).tolist()


def with_interval(name: str, values: ArrayLike, rng: np.random.Generator | int) -> dict:
    """{name: the mean of values (P,), name_interval: [low, high]}, by a generator or by the one of a seed."""
    return {
        name: float(np.mean(values, dtype=np.float64)),
        f"{name}_interval": bootstrap_interval(values, np.random.default_rng(rng)),
    }


def top_weights(n: int, candidates: int) -> np.ndarray:
    """The chance of each rank to be the best of a random subset of n: top_weights(2, 3) -> [2/3, 1/3, 0]."""
    # a rank is the best when it is in the subset and the other n - 1 come from the ranks behind it
    return np.array([comb(candidates - 1 - rank, n - 1) / comb(candidates, n) for rank in range(candidates)])


def best_of(n: int, scores: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Exact expected quality of the top-scored of n random candidates: scores and quality (P, N) -> (P,). Those
    with equal scores share their mean quality."""
    scores, quality = np.asarray(scores, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    if len(not_finite := np.argwhere(~np.isfinite(scores))):
        prompt, candidate = not_finite[0].tolist()
        raise ValueError(f"the score of prompt {prompt}, candidate {candidate} is not a finite number")
    ranked = np.stack([_best_first(*row) for row in zip(scores, quality, strict=True)])  # (P, N)
    return ranked @ top_weights(n, scores.shape[1])


def _best_first(scores: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Sort the quality (N,) of one prompt's candidates by their scores (N,), best first, ties averaged."""
    _, tie, tie_size = np.unique(-scores, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(tie, weights=quality) / tie_size, tie_size)


def candidate_counts(candidates: int) -> list[int]:
    """The n of a best-of-n curve: the powers of two and the number of candidates: 6 -> [1, 2, 4, 6]."""
    return [*(2 ** np.arange((candidates - 1).bit_length())).tolist(), candidates]


def _curve(scores: ArrayLike, quality: ArrayLike) -> list[float]:
    return [float(best_of(n, scores, quality).mean()) for n in candidate_counts(np.shape(scores)[1])]


def _ends(scores: ArrayLike, quality: ArrayLike, rng: np.random.Generator | int | None = None) -> dict:
    """Both ends of a best-of-n curve: {"n1", "best"}, and with an rng "n1_interval" and "best_interval"."""
    figures: dict = {}
    for name, n in (("n1", 1), ("best", np.shape(scores)[1])):
        values = best_of(n, scores, quality)
        figures |= {name: float(values.mean())} if rng is None else with_interval(name, values, rng)
    return figures


def match_rates(scores: ArrayLike, matches: Mapping[str, ArrayLike], seed: int) -> dict:
    """How often images show what their caption says: scores (P, N), matches {attribute: bool (P, N)} ->

    {"prompts": P, "all": {"n1", "best", "n1_interval", "best_interval"}, "scene": likewise,
     "colour": {"n1", "best"}, ..., "curve": {"n": [1, 2, 4, ..., N], "all": [...], "scene": [...]}}.
    `all` is every attribute, `scene` SCENE_ATTRIBUTES. Rates are from 0 to 1, intervals over prompts.
    """
    tables = {name: np.asarray(table, dtype=bool) for name, table in matches.items()}
    summaries = {
        "all": np.logical_and.reduce(list(tables.values())),
        "scene": np.logical_and.reduce([tables[name] for name in SCENE_ATTRIBUTES]),
    }
    curves = {name: _curve(scores, table) for name, table in summaries.items()}
    rng = np.random.default_rng(seed)
    return {
        "prompts": len(scores),
        **{name: _ends(scores, table, rng) for name, table in summaries.items()},
        **{name: _ends(scores, table) for name, table in tables.items()},
        "curve": {"n": candidate_counts(np.shape(scores)[1]), **curves},
    }


def clip_score(scores: ArrayLike, seed: int) -> dict:
    """The block `clip_score` of metrics.json, from raw cosines (P, N); `scaled` is 100 max(cosine, 0), often called
    CLIP score (Hessel et al., arXiv 2104.08718, use 2.5 instead of 100)."""
    curve = {"n": candidate_counts(np.shape(scores)[1]), "score": _curve(scores, scores)}
    scaled = 100 * np.maximum(np.asarray(scores, dtype=np.float64), 0)
    return {
        **_ends(scores, scores, np.random.default_rng(seed)),
        "curve": curve,
        "scaled": _ends(scores, scaled, seed),
    }


def retrieval(images: Tensor, captions: Tensor, seed: int) -> dict:
    """How often the scorer ranks an image's own caption first, and a caption's own image: the block `retrieval`
    of metrics.json, from the unit vectors (B, D) of held-out images and captions."""
    similarity = (images @ captions.T).numpy()
    return {
        "pictures": len(images),
        "captions_of_pictures": recall_at(similarity, seed),
        "pictures_of_captions": recall_at(similarity.T, seed),
    }


def recall_at(similarity: np.ndarray, seed: int, ks: Sequence[int] = RECALL_AT) -> dict:
    """Recall at each k, 0..1: similarity (B, B), pairs on the diagonal -> {"r1", "r1_interval", "r5", ...}. A tie
    with the own column is worth the chance to be among the first k, so that equal captions share one hit."""
    own = similarity.diagonal()[:, None]
    nearer, equal = (similarity > own).sum(axis=1), (similarity == own).sum(axis=1)
    figures: dict = {}
    for k in ks:
        figures |= with_interval(f"r{k}", ((k - nearer) / equal).clip(0, 1), seed)
    return figures


def found_among(similarity: np.ndarray, among: int, seed: int) -> dict:
    """How often an image's own caption is the nearest of `among` captions: the block `caption_found` of metrics.json,
    from the similarity (P, P) of images and captions, pairs on the diagonal. The exact expectation over all choices
    of the others; a tie with another caption is a miss."""
    count = len(similarity)
    among = min(among, count)
    nearer = (similarity >= similarity.diagonal()[:, None]).sum(axis=1) - 1
    found = [comb(count - 1 - int(n), among - 1) / comb(count - 1, among - 1) for n in nearer]
    return {"among": among, "chance": 1 / among, **with_interval("found", found, seed)}
