"""The row at each training position: a seeded permutation of all rows per epoch, or a mixture."""

from __future__ import annotations

import functools
import threading

import numpy as np

from thousandwords.data.mixture import Mixture, epoch_rows

CAPTION, VIEW, CROP, DROPOUT = range(4)  # what is random at a position; each has its own random numbers

_LOCK = threading.Lock()  # threads that reach a new epoch together compute its order once


def positions(step: int, batch_size: int) -> range:
    """The positions of global batch `step`: positions(2, 4) -> range(8, 12)"""
    return range(step * batch_size, (step + 1) * batch_size)


def epochs_and_rows(
    positions: range, count: int, seed: int, mixture: Mixture | None = None
) -> list[tuple[int, int]]:
    """(epoch, row) of each position, for a data set of `count` rows.

    A batch may hold the end of one epoch and the start of the next, so no row is left out. With a `mixture`, the
    first number is how often the row came before.
    """
    if mixture is not None:
        return [_mixture_row(mixture, seed, *divmod(position, count)) for position in positions]
    return [
        (position // count, int(_permutation(count, seed, position // count)[position % count]))
        for position in positions
    ]


def _mixture_row(mixture: Mixture, seed: int, epoch: int, index: int) -> tuple[int, int]:
    with _LOCK:
        rounds, rows = _cached_epoch_rows(mixture, seed, epoch)
    return int(rounds[index]), int(rows[index])


_cached_epoch_rows = functools.lru_cache(maxsize=4)(epoch_rows)


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    with _LOCK:
        return _cached_permutation(count, seed, epoch)


@functools.lru_cache(maxsize=4)
def _cached_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch, count]).permutation(count)
    return order.astype(np.uint32) if count <= 2**32 else order  # half the memory for the cached epochs


def choose(count: int, seed: int, purpose: int, epoch: int, row: int) -> int:
    """Choose one of a row's `count` captions or views for an epoch: each once per round of `count` epochs.

    Independent choices would repeat some captions before others come at all. Each round is shuffled anew, so
    that no caption is tied to a view.
    """
    if count == 1:
        return 0
    order = np.random.default_rng([seed, purpose, row, epoch // count]).permutation(count)
    return int(order[epoch % count])
