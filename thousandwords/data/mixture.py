"""Rows of an epoch of a mixture, sampled by the weights of its sources: a pure function of (seed, epoch).

An epoch has as many positions as there are rows. Each source that has rows gets a share of them by its weight.
Within its share, a source's rows come in seeded permutations, one after the other, continued from epoch to
epoch: no row of a source comes again before all its other rows have come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLOTS, ROWS = range(2)  # what is random: the positions of a source in the epoch, and the order of its rows
MIXTURES = "mixtures"  # manifest key, if sources have weights: {split: {"rows": …, "weights": …}}


@dataclass(frozen=True)
class Mixture:
    """The numbers of rows of the sources, in stored order, and their training weights."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def from_metadata(cls, metadata: dict, split: str) -> Mixture | None:
        """The mixture of a split from the metadata of a manifest; None if sources have no weights."""
        block = metadata.get(MIXTURES, {}).get(split)
        return block and cls(tuple(block["rows"]), tuple(block["weights"]))


def shares(count: int, weights: Sequence[float]) -> list[int]:
    """Split `count` positions by weight (largest remainder, ties to the first): (10, [1, 2]) -> [3, 7]."""
    exact = [count * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: whole[number] - exact[number])
    for number in by_remainder[: count - sum(whole)]:
        whole[number] += 1
    return whole


def epoch_rows(mixture: Mixture, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(round, row) at each position of an epoch, both (N,) uint32 for N rows in total.

    The round is how often the row came before; without a mixture that is the epoch.
    """
    ends = np.cumsum(mixture.rows)
    present = [number for number, count in enumerate(mixture.rows) if count]
    counts = shares(int(ends[-1]), [mixture.weights[number] for number in present])
    rounds, rows = zip(
        *(
            _source_rows(mixture.rows[number], count, [seed, ROWS, number], epoch)
            for number, count in zip(present, counts, strict=True)
        ),
        strict=True,
    )
    first_rows = [ends[number] - mixture.rows[number] for number in present]
    order = np.random.default_rng([seed, SLOTS, epoch]).permutation(int(ends[-1]))
    rows = [within + first for within, first in zip(rows, first_rows, strict=True)]
    return np.concatenate(rounds).astype(np.uint32)[order], np.concatenate(rows).astype(np.uint32)[order]


def _source_rows(rows: int, count: int, seed: list[int], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(rounds, rows) of a source with `rows` rows in an epoch that gets `count` of them."""
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    begin = epoch * count
    rounds = range(begin // rows, -(-(begin + count) // rows))
    permutations = np.concatenate(
        [np.random.default_rng([*seed, number]).permutation(rows) for number in rounds]
    )
    epoch_rows = permutations[begin - rounds.start * rows :][:count]
    return (begin + np.arange(count)) // rows, epoch_rows
