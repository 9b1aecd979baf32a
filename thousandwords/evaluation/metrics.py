"""Best of n, caption match and votes, with their intervals: pure functions on arrays.

Best of n is the paper's reranking by a contrastive scorer (arXiv 2102.12092, section 2.6). PSNR and codebook
use are in `nn.metrics`, image fidelity in `fid`.

Axes: P prompts, N candidates per prompt, R raters.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import comb

import numpy as np
from numpy.typing import ArrayLike

SCENE_ATTRIBUTES = ("colour", "background", "relation")  # without shape and size, which are harder to read
SUMMARIES = ("all", "scene")  # the rates that get an interval and a curve


def top_weights(n: int, candidates: int) -> np.ndarray:
    """The chance that each rank, best first, is the best of a random subset of n: top_weights(2, 3) -> [2/3,
    1/3, 0]."""
    if not 1 <= n <= candidates:
        raise ValueError(f"best of {n} of {candidates} candidates was requested; n must be 1 to {candidates}")
    # a rank is the best when it is in the subset and the other n - 1 come from the ranks behind it
    return np.array([comb(candidates - 1 - rank, n - 1) / comb(candidates, n) for rank in range(candidates)])


def best_of_by_prompt(n: int, scores: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Exact expected quality of the top-scored of n random candidates: scores and quality (P, N) -> (P,).

    Candidates with equal scores share their mean quality, as if ties were broken at random.
    """
    scores, quality = _check_table(scores, quality)
    ranked = np.stack([_best_first(*row) for row in zip(scores, quality, strict=True)])  # (P, N)
    return ranked @ top_weights(n, scores.shape[1])


def best_of(n: int, scores: ArrayLike, quality: ArrayLike) -> float:
    """The mean of `best_of_by_prompt` over prompts: n = 1 is the plain mean, n = N the top-scored of all."""
    return float(best_of_by_prompt(n, scores, quality).mean())


def _best_first(scores: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Sort the quality (N,) of one prompt's candidates by their scores (N,), best first, ties averaged."""
    _, tie, tie_size = np.unique(-scores, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(tie, weights=quality) / tie_size, tie_size)


def _check_table(scores: ArrayLike, quality: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, quality = np.asarray(scores, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0 or scores.shape != quality.shape:
        raise ValueError(
            "scores and quality must be tables (prompts, candidates) of one shape; "
            f"found {scores.shape} and {quality.shape}"
        )
    not_finite = np.argwhere(~np.isfinite(scores) | ~np.isfinite(quality))
    if len(not_finite):
        prompt, candidate = (int(index) for index in not_finite[0])
        raise ValueError(f"score or quality of prompt {prompt}, candidate {candidate} is not a finite number")
    return scores, quality


def candidate_counts(candidates: int) -> list[int]:
    """The n of a best-of-n curve: the powers of two and the number of candidates: candidate_counts(6) -> [1,
    2, 4, 6]."""
    return [2**k for k in range(candidates.bit_length()) if 2**k < candidates] + [candidates]


def bootstrap_interval(
    values: ArrayLike, rng: np.random.Generator, confidence: float = 0.95, rounds: int = 2000
) -> list[float]:
    """The interval [low, high] of the mean of values (P,), by percentile bootstrap over prompts.

    It resamples these prompts only: when all values agree, the interval is a point, however few they are.
    """
    values = np.asarray(values, dtype=np.float64)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(rounds)])
    tail = (1 - confidence) / 2
    return [float(bound) for bound in np.quantile(means, [tail, 1 - tail])]


def with_interval(name: str, values: ArrayLike, seed: int) -> dict[str, float | list[float]]:
    """{name: the mean of values (P,), name_interval: [low, high] by `bootstrap_interval`}"""
    values = np.asarray(values, dtype=np.float64)
    return {
        name: float(values.mean()),
        f"{name}_interval": bootstrap_interval(values, np.random.default_rng(seed)),
    }


def majority(votes: ArrayLike, rng: np.random.Generator) -> dict[str, float | list[float]]:
    """How often more than half of the raters say yes: votes (P, R) bool -> {"share", "interval": [low,
    high]}.

    The paper has five raters per caption (§3). The interval is over captions. Raises ValueError for an even
    R: it could tie.
    """
    votes = np.asarray(votes)
    if votes.ndim != 2 or votes.size == 0 or votes.dtype != bool:
        raise ValueError(
            f"votes must be a table (prompts, raters) of true and false; found {votes.dtype} {votes.shape}"
        )
    raters = votes.shape[1]
    if raters % 2 == 0:
        raise ValueError(
            f"a majority of {raters} raters can end in a tie; use an odd number, like the paper's 5"
        )
    is_majority = votes.sum(axis=1) > raters / 2
    return {"share": float(is_majority.mean()), "interval": bootstrap_interval(is_majority, rng)}


def with_summaries(matches: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """One table (P, N) per attribute, and before them `all` (every attribute) and `scene`
    (SCENE_ATTRIBUTES)."""
    tables = {name: np.asarray(table, dtype=bool) for name, table in matches.items()}
    missing = [name for name in SCENE_ATTRIBUTES if name not in tables]
    if missing:
        raise ValueError(f"caption match lacks the attribute {', '.join(missing)}; found {', '.join(tables)}")
    all_match = np.logical_and.reduce(list(tables.values()))
    scene = np.logical_and.reduce([tables[name] for name in SCENE_ATTRIBUTES])
    return {"all": all_match, "scene": scene, **tables}


def match_rates(scores: ArrayLike, matches: Mapping[str, ArrayLike], rng: np.random.Generator) -> dict:
    """How often images show what their caption says: scores (P, N), matches {attribute: bool (P, N)} ->

    {"prompts": P, "all": {"n1", "best", "n1_interval", "best_interval"}, "scene": likewise,
     "colour": {"n1", "best"}, ..., "curve": {"n": [1, 2, 4, ..., N], "all": [...], "scene": [...]}}.
    Rates are from 0 to 1, intervals over prompts.
    """
    tables = with_summaries(matches)
    prompts, candidates = np.shape(scores)
    rates = {name: _ends(scores, table, rng if name in SUMMARIES else None) for name, table in tables.items()}
    steps = candidate_counts(candidates)
    curve = {name: [best_of(n, scores, tables[name]) for n in steps] for name in SUMMARIES}
    return {"prompts": prompts, **rates, "curve": {"n": steps, **curve}}


def score_rates(scores: ArrayLike, rng: np.random.Generator) -> dict:
    """The mean score of one candidate and of the best of N: scores (P, N) -> {"n1", "best", ..., "curve"}.

    The score that is reported is also the one that ranks, so it always rises with n.
    """
    steps = candidate_counts(np.shape(scores)[1])
    curve = {"n": steps, "score": [best_of(n, scores, scores) for n in steps]}
    return {**_ends(scores, scores, rng), "curve": curve}


def _ends(scores: ArrayLike, quality: ArrayLike, rng: np.random.Generator | None) -> dict:
    """Both ends of a best-of-n curve: one candidate and all of them; with intervals where there is an rng."""
    single, best = (best_of_by_prompt(n, scores, quality) for n in (1, np.shape(scores)[1]))
    ends = {"n1": float(single.mean()), "best": float(best.mean())}
    if rng is not None:
        ends |= {
            "n1_interval": bootstrap_interval(single, rng),
            "best_interval": bootstrap_interval(best, rng),
        }
    return ends
