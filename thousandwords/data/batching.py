"""Batches of row numbers in order, without shuffling."""

from __future__ import annotations

from collections.abc import Iterator


def sequential_batches(count: int, batch_size: int) -> Iterator[list[int]]:
    """All row numbers once, in order: sequential_batches(5, 2) -> [0, 1], [2, 3], [4]"""
    for start in range(0, count, batch_size):
        yield list(range(start, min(count, start + batch_size)))
