"""The row at each training position: a seeded permutation of all rows per epoch, or a mixture of sources.

An epoch of a mixture has as many positions as there are rows. Each source that has rows gets a share of them by its
weight. Within its share, a source's rows come in seeded permutations, continued from epoch to epoch: no row of a
source comes again before all its other rows have come.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CAPTION, VIEW, CROP, DROPOUT = range(4)  # what is random at a position; each has its own random numbers
SLOTS, ROWS = range(2)  # and in a mixture: the positions of a source in the epoch, the order of its rows
MIXTURES = "mixtures"  # manifest key, if there are several sources: {split: {"rows": …, "weights": …}}

_LOCK = threading.Lock()  # threads that reach a new epoch together compute its order once


def sequential_batches(count: int, batch_size: int) -> Iterator[list[int]]:
    """All row numbers once, in order: sequential_batches(5, 2) -> [0, 1], [2, 3], [4]"""
    for start in range(0, count, batch_size):
        yield list(range(start, min(start + batch_size, count)))


@dataclass(frozen=True)
class Mixture:
    """The numbers of rows of the sources, in stored order, and their training weights: if equal to the numbers of rows,
    each row comes once in an epoch."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def from_metadata(cls, metadata: dict, split: str) -> Mixture | None:
        """The mixture of a split from the metadata of a manifest; None of a single source."""
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


def first_rows(count: int, num_rows: int, mixture: Mixture | None = None, repeat: bool = False) -> list[int]:
    """Up to `count` rows that stand for all: the first, and of a mixture the first of each source by the weights, mixed
    evenly, so that the first of these rows stand for all too. With `repeat` those of a source that has too few come
    again: a figure over these rows then weighs the sources as training does.

    first_rows(4, 9, Mixture(rows=(6, 3), weights=(1.0, 1.0))) -> [0, 6, 1, 7]
    """
    if mixture is None:
        return list(range(min(count, num_rows)))
    present = [number for number, rows in enumerate(mixture.rows) if rows]
    counts = shares(min(count, sum(mixture.rows)), [mixture.weights[number] for number in present])
    places = []
    for number, share in zip(present, counts, strict=True):
        start, rows = sum(mixture.rows[:number]), mixture.rows[number]
        ranks = range(share if repeat else min(share, rows))
        places += [((rank + 0.5) / share, number, start + rank % rows) for rank in ranks]
    return [row for *_, row in sorted(places)]


def epoch_rows(mixture: Mixture, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(how often the row came before, row) at each position of an epoch, both (N,) uint32 for N rows in total."""
    ends = np.cumsum(mixture.rows)
    present = [number for number, count in enumerate(mixture.rows) if count]
    counts = shares(int(ends[-1]), [mixture.weights[number] for number in present])
    rounds, rows = [], []
    for number, count in zip(present, counts, strict=True):
        of_source = _source_rows(mixture.rows[number], count, [seed, ROWS, number], epoch)
        rounds.append(of_source[0])
        rows.append(of_source[1] + ends[number] - mixture.rows[number])
    order = np.random.default_rng([seed, SLOTS, epoch]).permutation(int(ends[-1]))
    return np.concatenate(rounds).astype(np.uint32)[order], np.concatenate(rows).astype(np.uint32)[order]


def _source_rows(rows: int, count: int, seed: list[int], epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(rounds, rows) of a source with `rows` rows in an epoch that gets `count` of them."""
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    begin = epoch * count
    rounds = range(begin // rows, -(-(begin + count) // rows))
    permutations = [np.random.default_rng([*seed, number]).permutation(rows) for number in rounds]
    epoch_rows = np.concatenate(permutations)[begin - rounds.start * rows :][:count]
    return (begin + np.arange(count)) // rows, epoch_rows


def positions(step: int, batch_size: int) -> range:
    """The positions of global batch `step`: positions(2, 4) -> range(8, 12)"""
    return range(step * batch_size, (step + 1) * batch_size)


def epochs_and_rows(
    positions: range, count: int, seed: int, mixture: Mixture | None = None
) -> list[tuple[int, int]]:
    """(epoch, row) of each position, for a data set of `count` rows; with a `mixture`, how often the row came before.

    A batch may hold the end of one epoch and the start of the next, so no row is left out.
    """
    result = []
    for position in positions:
        epoch, index = divmod(position, count)
        with _LOCK:
            if mixture is None:
                rounds, rows = epoch, _cached_permutation(count, seed, epoch)
            else:
                rounds, rows = _cached_epoch_rows(mixture, seed, epoch)
        result.append((rounds if mixture is None else int(rounds[index]), int(rows[index])))
    return result


_cached_epoch_rows = functools.lru_cache(maxsize=4)(epoch_rows)


@functools.lru_cache(maxsize=4)
def _cached_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch, count]).permutation(count)
    return order.astype(np.uint32) if count <= 2**32 else order  # half the memory for the cached epochs


def choose(count: int, seed: int, purpose: int, epoch: int, row: int) -> int:
    """Choose one of a row's `count` captions or views for an epoch: each once per round of `count` epochs.

    Each round is shuffled anew, so that no caption is tied to a view.
    """
    if count == 1:
        return 0
    order = np.random.default_rng([seed, purpose, row, epoch // count]).permutation(count)
    return int(order[epoch % count])
