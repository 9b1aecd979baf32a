"""Compute the next items in threads while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")
Batch = TypeVar("Batch")
BATCHES_PER_THREAD = 2  # that each thread may be ahead


def prefetch_map(make: Callable[[Input], Output], inputs: Iterable[Input], threads: int) -> Iterator[Output]:
    """`map` that computes the next outputs in threads; with 0 threads, plain `map`."""
    if not threads:
        yield from map(make, inputs)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for item in inputs:
            waiting.append(pool.submit(make, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Prefetcher(Generic[Batch]):
    """`batch_of(step)` that computes the next batches in threads; with 0 workers, plain `batch_of(step)`.

    Usage: with Prefetcher(batch_of, steps, workers) as batches: batches(0), batches(1), … below `steps` in advance.
    """

    def __init__(self, batch_of: Callable[[int], Batch], steps: int, workers: int) -> None:
        self.batch_of, self.steps, self.workers = batch_of, steps, workers
        self._pending: dict[int, Future[Batch]] = {}
        self._threads = ThreadPoolExecutor(workers, "loader") if workers else None

    def __call__(self, step: int) -> Batch:
        if self._threads is None:
            return self.batch_of(step)
        next_steps = range(step, max(step + 1, min(step + 1 + BATCHES_PER_THREAD * self.workers, self.steps)))
        for outdated in set(self._pending) - set(next_steps):
            self._pending.pop(outdated).cancel()
        for next_step in next_steps:
            if next_step not in self._pending:
                self._pending[next_step] = self._threads.submit(self.batch_of, next_step)
        return self._pending.pop(step).result()

    def __enter__(self) -> Prefetcher[Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
