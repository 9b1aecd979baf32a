"""An ordered map over processes with limits: an image that crashes its decoder fails alone.

    for image, outcome in ordered_map(decode, make_batches(images, len), count=2): ...

An input that ends its worker, or exceeds a limit, is tried once more in a new worker; only if it fails again
the outcome is a `Fault`. So a fault does not depend on other inputs, and the outcomes are the same for any
number of workers. Left out: the memory limit on systems other than Linux.
"""

import contextlib
import functools
import os
import resource
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from thousandwords.parallel.pool import LocalWorker, Pool, WorkerDied, thread_variables

Input = TypeVar("Input")
Output = TypeVar("Output")

BATCH_SIZE = 16  # inputs sent to a worker at once
MAX_BATCH_BYTES = 2_000_000  # a batch of this size is full; one input may be larger
BATCHES_AHEAD = 8  # batches per worker that are not yielded yet: enough while a shard is written
WALL_CLOCK_FACTOR = 3
OUT_OF_MEMORY = signal.SIGUSR2  # with which a worker ends itself


@dataclass(frozen=True)
class Limits:
    """The limits for one input."""

    seconds: float = 10.0  # CPU time; wall-clock time: WALL_CLOCK_FACTOR times as long
    memory: int = 512_000_000  # bytes of address space in addition to that of a started worker


@dataclass(frozen=True)
class Fault:
    """The outcome of an input that kills its worker or exceeds a limit, also in a new worker."""

    reason: str  # worker_died, decode_timeout or out_of_memory
    detail: str


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_batches(inputs: Iterable[Input], num_bytes: Callable[[Input], int]) -> Iterator[list[Input]]:
    """Batches of inputs in order, full at BATCH_SIZE inputs or MAX_BATCH_BYTES (counted by `num_bytes`)."""
    batch, size = [], 0
    for item in inputs:
        batch.append(item)
        size += num_bytes(item)
        if len(batch) == BATCH_SIZE or size >= MAX_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def ordered_map(
    function: Callable[[Input], Output],
    batches: Iterable[Sequence[Input]],
    count: int,
    limits: Limits = Limits(),
) -> Iterator[tuple[Input, Output | Fault]]:
    """(input, outcome) in the order of the inputs, computed by `count` processes; a few batches are in memory
    at a time.

    `function` is importable by name, or a partial of such a function. Its exceptions stop the map, except
    MemoryError. No worker outlives the iterator: close it if you leave early.
    """
    opener = functools.partial(_open_limited, function, limits)
    variables = thread_variables(1)  # there is one worker per core

    def on_death(_: Input, error: WorkerDied, attempt: int) -> Fault | None:
        return None if attempt == 1 else _fault(str(error), limits)

    with Pool(lambda _: _DecodingWorker(opener, "cpu", variables), count, on_death, "decoders") as pool:
        yield from pool.results(batches, BATCHES_AHEAD)


def _fault(ending: str, limits: Limits) -> Fault:
    if ending == OUT_OF_MEMORY.name:
        return Fault("out_of_memory", "it takes more memory than an image may")
    if ending in ("SIGPROF", "SIGALRM"):
        return Fault("decode_timeout", f"not done after {limits.seconds:g} seconds, twice")
    how = "by" if ending.startswith("SIG") else "with"
    return Fault("worker_died", f"the process that decoded it ended {how} {ending}, twice")


class _DecodingWorker(LocalWorker):
    def open(self) -> None:
        try:
            return super().open()
        except WorkerDied as error:  # no fault of an input
            raise RuntimeError(f"a worker process did not start: it ended with {error}") from error


# ---- in a worker


def _open_limited(function: Callable[[Input], Output], limits: Limits, _: str) -> Callable[[Input], Output]:
    """The function with limits: the kernel ends the process when a call exceeds its time."""
    _limit_memory(limits.memory)
    # decoders print warnings without the name of the file; the outcomes report the damage
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)

    def set_timers(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, WALL_CLOCK_FACTOR * seconds)

    def limited(item: Input) -> Output:
        set_timers(limits.seconds)
        try:
            return function(item)
        except MemoryError:  # maybe used by earlier inputs: the next try is in a new process
            os.kill(os.getpid(), OUT_OF_MEMORY)
            raise
        finally:
            set_timers(0)

    return limited


def _limit_memory(memory: int) -> None:
    """Allow `memory` more bytes of address space; and no core dumps, which every crash would leave."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(FileNotFoundError), open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
