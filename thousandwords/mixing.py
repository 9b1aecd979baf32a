"""Which rows an epoch of a mixture shows, by the weights of its sources: a pure function of (seed, epoch).

An epoch has as many positions as there are rows. Each source gets its share of them, which is its weight over the sum of the
weights of all sources that have rows, rounded so that the shares add up (largest remainder). Within its share a source is gone
through in seeded permutations of its rows, one after the other and on from epoch to epoch: no row of a source is shown a second
time before all its others were shown once more. Weights in proportion to the numbers of rows show every row once an epoch.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SLOTS, ROWS = range(2)    # what is drawn: where in the epoch a source comes, and which of its rows


def shares(count: int, weights: Sequence[float]) -> list[int]:
    """How many of `count` positions each weight gets, by largest remainder, the first of equals first: (10, [1, 2]) -> [3, 7]."""
    exact = [count * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: whole[number] - exact[number])
    for number in by_remainder[:count - sum(whole)]:
        whole[number] += 1
    return whole


def epoch_rows(sources: np.ndarray, weights: Sequence[float], seed: int, epoch: int) -> np.ndarray:
    """The row at each position of an epoch: source numbers (N,) of all rows -> rows (N,) int64.

    `weights` are by source number; a source without rows counts for nothing.
    """
    present = [number for number in range(len(weights)) if (sources == number).any()]
    counts = shares(len(sources), [weights[number] for number in present])
    shown = [_taken(np.flatnonzero(sources == number), count, [seed, ROWS, number], epoch)
             for number, count in zip(present, counts, strict=True)]
    return np.random.default_rng([seed, SLOTS, epoch]).permutation(np.concatenate(shown))


def _taken(rows: np.ndarray, count: int, seed: list[int], epoch: int) -> np.ndarray:
    """What a source with these rows shows in an epoch, `count` of them in each epoch, out of round after round of all rows."""
    begin = epoch * count
    rounds = range(begin // len(rows), -(-(begin + count) // len(rows)))
    if not rounds:
        return rows[:0]
    laid_out = np.concatenate([np.random.default_rng([*seed, number]).permutation(rows) for number in rounds])
    return laid_out[begin - rounds.start * len(rows):][:count]
