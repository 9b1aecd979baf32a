"""How good are the words, the pictures and the ranking: pure functions on arrays.

PSNR and codebook use watch the image tokenizer for the collapse that its relaxed loss hides; best of n is the
paper's reranking by a contrastive scorer (arXiv 2102.12092, section 2.6).
Left out: likeness to real pictures, by an embedding (`fidelity`).

Axes: B images, V vocabulary, P prompts, N candidates per prompt, R raters.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import comb

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

SCENE_ATTRIBUTES = ("colour", "background", "relation")    # what is left when shape and size are forgiven
HEADLINES = ("all", "scene")                               # the rates that get an interval and a curve
SMALLEST_ERROR = 1e-10                                     # equal images count as 100 dB, not as infinity


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Likeness in dB of each image, from its own mean squared error: a and b (B, 3, H, W) in [0, 1] -> (B,).

    A reconstruction's PSNR is reported as the mean of these values, the usual convention (see `mean_psnr`);
    the PSNR of the mean error would be lower and ruled by the worst images.
    """
    a, b = (torch.as_tensor(images).detach().cpu().double() for images in (a, b))
    _check_images(a, b)
    error = (a - b).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=SMALLEST_ERROR).log10()


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """The mean over images of each image's PSNR, in dB."""
    return psnr(a, b).mean().item()


def _check_images(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[0] == 0:
        raise ValueError("psnr wants two stacks (B, 3, H, W) of one shape; "
                         f"found {tuple(a.shape)} and {tuple(b.shape)}")
    both = torch.stack((a, b))    # torch's min and max pass a NaN on, Python's may swallow it
    low, high = both.min().item(), both.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"psnr wants images in [0, 1]; found values from {low:g} to {high:g}: "
                         "divide bytes by 255 first")


def codebook_counts(tokens: Tensor, vocab_size: int) -> Tensor:
    """How often each word occurs: tokens, any shape -> (V,). codebook_counts([0, 2], 4) -> [1, 0, 1, 0]."""
    tokens = torch.as_tensor(tokens).detach().cpu().long().flatten()
    if tokens.numel() == 0:
        raise ValueError("codebook use was asked for no tokens at all; is the validation split empty?")
    low, high = tokens.min().item(), tokens.max().item()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"image tokens run from {low} to {high}, outside a codebook of {vocab_size} words; "
                         "were they written by another tokenizer?")
    return torch.bincount(tokens, minlength=vocab_size)


def codebook_usage(tokens: Tensor, vocab_size: int) -> dict[str, float | int]:
    """Share and number of words in use, and their perplexity: exp(entropy), V when all are used evenly."""
    counts = codebook_counts(tokens, vocab_size).double()
    share = counts[counts > 0] / counts.sum()
    perplexity = (-(share * share.log()).sum()).exp().item()
    return {"used": len(share) / vocab_size, "used_words": len(share), "perplexity": perplexity}


def top_weights(n: int, candidates: int) -> np.ndarray:
    """Chance of each rank, best first, to lead a random subset of n; top_weights(2, 3) -> [2/3, 1/3, 0]."""
    if not 1 <= n <= candidates:
        raise ValueError(f"best of {n} was asked of {candidates} candidates; n must be 1 to {candidates}")
    # a rank wins when it is drawn and the other n - 1 all come from the ranks behind it
    return np.array([comb(candidates - 1 - rank, n - 1) / comb(candidates, n) for rank in range(candidates)])


def best_of_by_prompt(n: int, scores: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Expected quality of the top-scored among n random candidates: scores and quality (P, N) -> (P,), exact.

    Candidates with equal scores share their mean quality, as a coin would break the tie.
    """
    scores, quality = _check_table(scores, quality)
    ranked = np.stack([_best_first(*row) for row in zip(scores, quality, strict=True)])    # (P, N)
    return ranked @ top_weights(n, scores.shape[1])


def best_of(n: int, scores: ArrayLike, quality: ArrayLike) -> float:
    """The mean over prompts of `best_of_by_prompt`: n = 1 is the plain mean, n = N the top-scored of all."""
    return float(best_of_by_prompt(n, scores, quality).mean())


def _best_first(scores: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """The quality (N,) of one prompt's candidates in the order of their scores (N,), ties averaged."""
    _, tie, tie_size = np.unique(-scores, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(tie, weights=quality) / tie_size, tie_size)


def _check_table(scores: ArrayLike, quality: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, quality = np.asarray(scores, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0 or scores.shape != quality.shape:
        raise ValueError("scores and quality are tables (prompts, candidates) of one shape; "
                         f"found {scores.shape} and {quality.shape}")
    bad = np.argwhere(~np.isfinite(scores) | ~np.isfinite(quality))
    if len(bad):
        prompt, candidate = (int(index) for index in bad[0])
        raise ValueError(f"score or quality of prompt {prompt}, candidate {candidate} is not a finite number")
    return scores, quality


def candidate_counts(candidates: int) -> list[int]:
    """The n of a best-of-n curve: the powers of two and the whole; candidate_counts(6) -> [1, 2, 4, 6]."""
    return [2**k for k in range(candidates.bit_length()) if 2**k < candidates] + [candidates]


def bootstrap_interval(values: ArrayLike, rng: np.random.Generator, confidence: float = 0.95,
                       rounds: int = 2000) -> list[float]:
    """Where the mean of values (P,) would fall for other such prompts: percentile bootstrap -> [low, high].

    It knows only the prompts seen: when all agree, the interval is a point, however few they are.
    """
    values = np.asarray(values, dtype=np.float64)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(rounds)])
    tail = (1 - confidence) / 2
    return [float(bound) for bound in np.quantile(means, [tail, 1 - tail])]


def majority(votes: ArrayLike, rng: np.random.Generator) -> dict[str, float | list[float]]:
    """How often more than half of the raters say yes: votes (P, R) bool -> {"share", "interval": [low, high]}.

    The paper asks five raters per caption (§3). The interval is over captions. Raises ValueError: an even R could tie.
    """
    votes = np.asarray(votes)
    if votes.ndim != 2 or votes.size == 0 or votes.dtype != bool:
        raise ValueError(f"votes are a table (prompts, raters) of true and false; found {votes.dtype} {votes.shape}")
    raters = votes.shape[1]
    if raters % 2 == 0:
        raise ValueError(f"a majority of {raters} raters can end in a tie; ask an odd number, like the paper's 5")
    won = votes.sum(axis=1) > raters / 2
    return {"share": float(won.mean()), "interval": bootstrap_interval(won, rng)}


def with_summaries(matches: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """A table (P, N) per attribute, preceded by `all` (every attribute) and `scene` (SCENE_ATTRIBUTES)."""
    tables = {name: np.asarray(table, dtype=bool) for name, table in matches.items()}
    missing = [name for name in SCENE_ATTRIBUTES if name not in tables]
    if missing:
        raise ValueError(f"caption match lacks the attribute {', '.join(missing)}; found {', '.join(tables)}")
    every = np.logical_and.reduce(list(tables.values()))
    scene = np.logical_and.reduce([tables[name] for name in SCENE_ATTRIBUTES])
    return {"all": every, "scene": scene, **tables}


def match_rates(scores: ArrayLike, matches: Mapping[str, ArrayLike], rng: np.random.Generator) -> dict:
    """How often pictures show what their caption says: scores (P, N), matches {attribute: bool (P, N)} ->

    {"prompts": P, "all": {"n1", "best", "n1_interval", "best_interval"}, "scene": likewise,
     "colour": {"n1", "best"}, ..., "curve": {"n": [1, 2, 4, ..., N], "all": [...], "scene": [...]}}.
    Rates in 0..1; the intervals are over prompts.
    """
    tables = with_summaries(matches)
    prompts, candidates = np.shape(scores)
    rates = {name: _ends(scores, table, rng if name in HEADLINES else None) for name, table in tables.items()}
    steps = candidate_counts(candidates)
    curve = {name: [best_of(n, scores, tables[name]) for n in steps] for name in HEADLINES}
    return {"prompts": prompts, **rates, "curve": {"n": steps, **curve}}


def score_rates(scores: ArrayLike, rng: np.random.Generator) -> dict:
    """The mean score of one candidate and of the best of N: scores (P, N) -> {"n1", "best", ..., "curve"}.

    The score that ranks is also the score that is reported, so this rises with n by construction.
    """
    steps = candidate_counts(np.shape(scores)[1])
    curve = {"n": steps, "score": [best_of(n, scores, scores) for n in steps]}
    return {**_ends(scores, scores, rng), "curve": curve}


def top1(similarity: ArrayLike) -> float:
    """How often a picture is nearest to its own caption: similarity (B, B), pairs on the diagonal -> 0..1.

    A tie is worth its share, so equal captions cost a little and a scorer without opinions gets 1 / B.
    """
    similarity = np.asarray(similarity)
    nearest = similarity == similarity.max(axis=1, keepdims=True)
    return float((nearest.diagonal() / nearest.sum(axis=1)).mean())


def _ends(scores: ArrayLike, quality: ArrayLike, rng: np.random.Generator | None) -> dict:
    """The two ends of a best-of-n curve: one candidate and all of them, with intervals when given an rng."""
    one, best = (best_of_by_prompt(n, scores, quality) for n in (1, np.shape(scores)[1]))
    ends = {"n1": float(one.mean()), "best": float(best.mean())}
    if rng is not None:
        ends |= {"n1_interval": bootstrap_interval(one, rng), "best_interval": bootstrap_interval(best, rng)}
    return ends
