"""An ordered map over worker processes that may die: an image that crashes its decoder fails alone.

    for image, outcome in ordered_map(decode, make_batches(images, len), count=2): ...

Each worker is a new interpreter with its own socket, a memory limit and a time limit. It answers input by
input, so the input at which it dies or is late is known. That input is tried once more in a new worker, and
only if it fails again the outcome is a `Fault`. So a fault does not depend on other inputs, and the outcomes
are the same for any number of workers. Workers end with the process that started them, however it ends.

New interpreters, not forks: the parent process has torch and its threads, and a fork may inherit a lock that
is never released. Not `multiprocessing` either: its workers import the main module again, which in a stage is
MLflow and in a script without a guard the whole script; and its pools lose all work in progress when one
worker dies. Left out: the memory limit, and the end of a busy worker when its parent ends, on systems other
than Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TypeVar

from thousandwords.parallel.worker_slot import WorkerPool, WorkerSlot

Input = TypeVar("Input")
Output = TypeVar("Output")

BATCH_SIZE = 16  # inputs sent to a worker at once
MAX_BATCH_BYTES = 2_000_000  # a batch of this size is full; one input may be larger
BATCHES_AHEAD = 8  # batches per worker that are not yielded yet: enough while a shard is written
START_SECONDS = 120.0
WALL_CLOCK_FACTOR = 3
SERVE = "import sys; from thousandwords.parallel.process_pool import serve; serve(*map(int, sys.argv[1:]))"
READY = "ready"
PR_SET_PDEATHSIG = 1
WORKER_DIED, TIMEOUT, OUT_OF_MEMORY = "worker_died", "decode_timeout", "out_of_memory"


@dataclass(frozen=True)
class Limits:
    """The limits for one input."""

    seconds: float = 10.0  # CPU time of the worker; wall-clock time: WALL_CLOCK_FACTOR times as long
    memory: int = 512_000_000  # bytes of address space in addition to that of a started worker


@dataclass(frozen=True)
class Fault:
    """The outcome of an input that kills its worker or exceeds a limit, also in a new worker."""

    reason: str  # worker_died, decode_timeout or out_of_memory
    detail: str


class _Bug(Exception):
    """An unexpected exception of the function; it stops the map, because it is not caused by the input."""


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

    `function` is importable by name, or a partial of such a function. If it raises MemoryError, the outcome
    is a Fault; any other exception stops the map with a RuntimeError. No worker outlives the iterator: close
    it if you leave early.
    """
    with _Pool(function, count, limits) as pool:
        waiting = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(batch)))
            if len(waiting) == BATCHES_AHEAD * count:
                yield from _with_inputs(*waiting.popleft())
        while waiting:
            yield from _with_inputs(*waiting.popleft())


def _with_inputs(batch: Sequence[Input], future: Future) -> Iterator[tuple[Input, Output | Fault]]:
    return zip(batch, future.result(), strict=True)


# ---- in the process that has the inputs


class _Pool(WorkerPool):
    """`count` worker slots that process batches."""

    def __init__(self, function: Callable, count: int, limits: Limits):
        super().__init__([_Slot(function, limits) for _ in range(count)], "workers")

    def submit(self, batch: Sequence) -> Future:
        return self.threads.submit(self._work, batch)

    def _work(self, batch: Sequence) -> list:
        slot = self.free.get()
        try:
            return slot.outcomes(batch)
        finally:
            self.free.put(slot)


class _Slot(WorkerSlot["_Worker"]):
    """The slot of one worker process."""

    def __init__(self, function: Callable, limits: Limits):
        self.function, self.limits = function, limits

    def start(self) -> _Worker:
        return _Worker(self.function, self.limits)

    def outcomes(self, batch: Sequence) -> list:
        done = []
        while len(done) < len(batch):
            for outcome in self._ask(batch[len(done) :]):
                if isinstance(
                    outcome, Fault
                ):  # maybe caused by earlier inputs of the same worker: try it in a new one
                    outcome = next(self._ask([batch[len(done)]]))
                done.append(outcome)
        return done

    def _ask(self, batch: Sequence) -> Iterator:
        """The outcomes of a batch in order, up to the first fault; after that the slot gets a new worker."""
        worker, _ = self.get()
        for outcome in worker.outcomes(batch):
            if isinstance(outcome, _Bug):
                raise RuntimeError(f"a worker process failed:\n{outcome}")
            if isinstance(outcome, Fault):
                self.restart()
                yield outcome
                return
            yield outcome


class _Worker:
    """One worker process; it may be ended at any time."""

    def __init__(self, function: Callable, limits: Limits):
        self.seconds = limits.seconds
        self.connection, child_end = Pipe()
        command = [
            sys.executable,
            "-P",
            "-c",
            SERVE,
            str(child_end.fileno()),
            str(os.getpid()),
            str(limits.memory),
        ]
        self.process = subprocess.Popen(
            command, pass_fds=[child_end.fileno()], stdin=subprocess.DEVNULL, env=_environment()
        )
        child_end.close()
        self._start(function)

    def _start(self, function: Callable) -> None:
        try:
            self.connection.send(function)
            if self.connection.poll(START_SECONDS) and self.connection.recv() == READY:
                return
        except (EOFError, OSError):
            pass
        raise RuntimeError(f"a worker process did not start: it ended {self._exit_reason()}")

    def outcomes(self, batch: Sequence) -> Iterator:
        """One outcome per input of the batch, or fewer, the last of them a Fault."""
        try:
            self.connection.send(batch)
            for _ in batch:
                if not self._answers_in_time():
                    yield Fault(TIMEOUT, f"not done after {self.seconds:g} seconds, twice")
                    return
                yield self.connection.recv()
        except (EOFError, OSError):
            yield Fault(WORKER_DIED, f"the process that decoded it ended {self._exit_reason()}, twice")

    def _answers_in_time(self) -> bool:
        """Whether an answer comes in time, measured by the worker's CPU time: on a busy machine it may have
        to wait.

        CPU time is read only after the first tenth of the limit: most answers come earlier and cost less than
        reading it.
        """
        if self.connection.poll(self.seconds / 10):
            return True
        end, start = time.monotonic() + WALL_CLOCK_FACTOR * self.seconds, self._cpu_seconds()
        while time.monotonic() < end and self._cpu_seconds() - start < 0.9 * self.seconds:
            if self.connection.poll(self.seconds / 10):
                return True
        return False

    def _cpu_seconds(self) -> float:
        """CPU time of the worker so far; 0 if the system does not report it."""
        try:
            with open(f"/proc/{self.process.pid}/stat") as file:
                user, system = file.read().rpartition(")")[2].split()[11:13]
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _exit_reason(self) -> str:
        """How the process ended; a process that closed its socket but still runs is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.end()
        code = self.process.returncode
        return f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _environment() -> dict[str, str]:
    """The environment of this process, its module path, and one thread: there is one worker per core."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


# ---- in a worker


def serve(descriptor: int, parent: int, memory: int) -> None:
    """Main loop of a worker: receive a function, then batches, and answer input by input."""
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    with contextlib.suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        function = connection.recv()
        _limit_memory(memory)
        # decoders print warnings without the name of the file; the outcomes report the damage
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        connection.send(READY)
        while True:
            for item in connection.recv():
                connection.send(_outcome(function, item))


def _outcome(function: Callable, item: object) -> object:
    try:
        return function(item)
    except MemoryError:
        return Fault(OUT_OF_MEMORY, "it takes more memory than an image may")
    except Exception:  # sent as text: the exception itself might not be picklable
        return _Bug(traceback.format_exc())


def _limit_memory(memory: int) -> None:
    """Allow `memory` more bytes of address space; and no core dumps, which every crash would leave."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(FileNotFoundError), open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


def _end_with(parent: int) -> None:
    """Make the kernel kill this process when its parent thread ends; exit if that has already ended."""
    with contextlib.suppress(AttributeError, OSError):  # not on this system
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
