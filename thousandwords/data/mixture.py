"""Which rows an epoch of a mixture shows, by the weights of its sources: a pure function of (seed, epoch).

An epoch has as many positions as there are rows. Each source gets its share of them, which is its weight over the sum of the
weights of all sources that have rows, rounded so that the shares add up (largest remainder). Within its share a source is gone
through in seeded permutations of its rows, one after the other and on from epoch to epoch: no row of a source is shown a second
time before all its others were shown once more. Weights in proportion to the numbers of rows show every row once an epoch.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLOTS, ROWS = range(2)    # what is drawn: where in the epoch a source comes, and which of its rows
MIXTURES = "mixtures"    # of the facts of a manifest: {split: {"rows": …, "weights": …}}, where sources have weights


@dataclass(frozen=True)
class Mixing:
    """How many rows each source has, one source's after the other's, and how much training sees of each."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def from_facts(cls, facts: dict, split: str) -> Mixing | None:
        """What a manifest says of a split; None where every row is to be shown as often as any other."""
        found = facts.get(MIXTURES, {}).get(split)
        return found and cls(tuple(found["rows"]), tuple(found["weights"]))


def shares(count: int, weights: Sequence[float]) -> list[int]:
    """How many of `count` positions each weight gets, by largest remainder, the first of equals first: (10, [1, 2]) -> [3, 7]."""
    exact = [count * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: whole[number] - exact[number])
    for number in by_remainder[:count - sum(whole)]:
        whole[number] += 1
    return whole


def epoch_places(mixing: Mixing, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(round, row) at each position of an epoch, both (N,) uint32 for N rows in all.

    A row's round says how often it was shown before, as the epoch does where every row is shown once in each.
    """
    ends = np.cumsum(mixing.rows)
    present = [number for number, count in enumerate(mixing.rows) if count]
    counts = shares(int(ends[-1]), [mixing.weights[number] for number in present])
    rounds, rows = zip(*(
        _taken(mixing.rows[number], count, [seed, ROWS, number], epoch) for number, count in zip(present, counts, strict=True)
    ), strict=True)
    first_rows = [ends[number] - mixing.rows[number] for number in present]
    order = np.random.default_rng([seed, SLOTS, epoch]).permutation(int(ends[-1]))
    rows = [within + first for within, first in zip(rows, first_rows, strict=True)]
    return np.concatenate(rounds).astype(np.uint32)[order], np.concatenate(rows).astype(np.uint32)[order]


def _taken(rows: int, count: int, seed: list[int], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(rounds, rows) that a source of so many rows shows in an epoch, `count` in each, out of round after round of all rows."""
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    begin = epoch * count
    rounds = range(begin // rows, -(-(begin + count) // rows))
    laid_out = np.concatenate([np.random.default_rng([*seed, number]).permutation(rows) for number in rounds])
    shown = laid_out[begin - rounds.start * rows:][:count]
    return (begin + np.arange(count)) // rows, shown
