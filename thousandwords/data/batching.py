"""Batches of row numbers in order, without shuffling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def sequential_batches(count: int, batch_size: int) -> Iterator[list[int]]:
    """All row numbers once, in order: sequential_batches(5, 2) -> [0, 1], [2, 3], [4]"""
    for rows in np.split(np.arange(count), range(batch_size, count, batch_size)):
        if len(rows):
            yield rows.tolist()
