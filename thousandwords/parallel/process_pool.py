"""An ordered map over worker processes that may die: what a decoder does to its process costs its own picture alone.

    for picture, outcome in ordered_map(decode, batches(pictures, len), count=2): ...

Each worker is a fresh interpreter on a socket of its own, limited in memory, and watched for the time it takes. It answers
input by input, so that when it dies, or is late, the guilty one is known: that input is tried once more in a worker that has
seen no other, and only if that ends the same way the outcome is a `Fault`. So a fault never depends on the neighbours, and
the outcomes are the same for any number of workers. Workers end with the process that started them, however it ends.

Fresh interpreters, not forks: the process that starts them holds torch and its threads, and a fork may inherit a lock that
no thread is left to open. Not `multiprocessing` either: its workers import the main module again, which in a stage is MLflow
and in a script without a guard the whole script; and its pools give up all work in flight when one worker dies.
Left out: the limit on memory, and the death of a busy worker at its parent's, on systems other than Linux.
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
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TypeVar

from thousandwords.desks import Crew, Desk

Input = TypeVar("Input")
Output = TypeVar("Output")

BATCH = 16    # inputs handed over at once
BATCH_BYTES = 2_000_000    # beyond it a batch is full; one input may be larger
AHEAD = 8    # batches for each worker that are read, at work or wait for their turn: enough while a shard is written
START_SECONDS = 120.0
PATIENCE = 3
SERVE = "import sys; from thousandwords.workers import serve; serve(*map(int, sys.argv[1:]))"
READY = "ready"
PR_SET_PDEATHSIG = 1
DIED, LATE, TOO_LARGE = "worker_died", "decode_timeout", "out_of_memory"


@dataclass(frozen=True)
class Limits:
    """What one input may cost."""

    seconds: float = 10.0    # of the worker's own time; PATIENCE times that by the clock
    memory: int = 512_000_000    # bytes of address space beyond what a worker has at its start


@dataclass(frozen=True)
class Fault:
    """The outcome of an input that ends or stalls its worker even when tried alone."""

    reason: str    # worker_died, decode_timeout or out_of_memory
    detail: str


class _Bug(Exception):
    """An exception that the function did not mean to raise: the run stops, for it is no input's fault."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(inputs: Iterable[Input], weigh: Callable[[Input], int]) -> Iterator[list[Input]]:
    """Inputs in order, in batches of BATCH or of BATCH_BYTES by `weigh`, whichever is less."""
    batch, weight = [], 0
    for one in inputs:
        batch.append(one)
        weight += weigh(one)
        if len(batch) == BATCH or weight >= BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def ordered_map(function: Callable[[Input], Output], batches: Iterable[Sequence[Input]], count: int,
                limits: Limits = Limits()) -> Iterator[tuple[Input, Output | Fault]]:
    """(input, outcome) in the order of the inputs, computed by `count` processes; a few batches are in memory at a time.

    `function` has a name in a module, or is a partial of such a one. A MemoryError of its is a fault of the input, any other
    exception stops the map as a RuntimeError. No worker outlives the iterator: close it if you leave early.
    """
    with _Crew(function, count, limits) as crew:
        waiting = deque()
        for batch in batches:
            waiting.append((batch, crew.submit(batch)))
            if len(waiting) == AHEAD * count:
                yield from _answered(*waiting.popleft())
        while waiting:
            yield from _answered(*waiting.popleft())


def _answered(batch: Sequence[Input], answers) -> Iterator[tuple[Input, Output | Fault]]:
    return zip(batch, answers.result(), strict=True)


# ---- in the process that has the inputs


class _Crew(Crew):
    """`count` desks that are handed batches."""

    def __init__(self, function: Callable, count: int, limits: Limits):
        super().__init__([_Desk(function, limits) for _ in range(count)], "workers")

    def submit(self, batch: Sequence):
        return self.threads.submit(self._work, batch)

    def _work(self, batch: Sequence) -> list:
        desk = self.free.get()
        try:
            return desk.outcomes(batch)
        finally:
            self.free.put(desk)


class _Desk(Desk["_Worker"]):
    """The place of one worker process."""

    def __init__(self, function: Callable, limits: Limits):
        self.function, self.limits = function, limits

    def hire(self) -> _Worker:
        return _Worker(self.function, self.limits)

    def outcomes(self, batch: Sequence) -> list:
        done = []
        while len(done) < len(batch):
            for outcome in self._ask(batch[len(done):]):
                if isinstance(outcome, Fault):    # of the worker as it was: who else had been in it, may matter
                    outcome = next(self._ask([batch[len(done)]]))
                done.append(outcome)
        return done

    def _ask(self, batch: Sequence) -> Iterator:
        """The outcomes of a batch, in order, up to its first fault: after one, the next to be asked is a fresh worker."""
        worker, _ = self.seated()
        for outcome in worker.outcomes(batch):
            if isinstance(outcome, _Bug):
                raise RuntimeError(f"a worker process failed:\n{outcome}")
            if isinstance(outcome, Fault):
                self.dismiss()
                yield outcome
                return
            yield outcome


class _Worker:
    """One process that answers; any number of them may be ended at any time."""

    def __init__(self, function: Callable, limits: Limits):
        self.seconds = limits.seconds
        self.connection, theirs = Pipe()
        words = [sys.executable, "-P", "-c", SERVE, str(theirs.fileno()), str(os.getpid()), str(limits.memory)]
        self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=_environment())
        theirs.close()
        self._start(function)

    def _start(self, function: Callable) -> None:
        try:
            self.connection.send(function)
            if self.connection.poll(START_SECONDS) and self.connection.recv() == READY:
                return
        except (EOFError, OSError):
            pass
        raise RuntimeError(f"a worker process did not start: it ended {self._ending()}")

    def outcomes(self, batch: Sequence) -> Iterator:
        """One for each input of the batch, or fewer, the last of them a Fault."""
        try:
            self.connection.send(batch)
            for _ in batch:
                if not self._answers():
                    yield Fault(LATE, f"not done after {self.seconds:g} seconds, twice")
                    return
                yield self.connection.recv()
        except (EOFError, OSError):
            yield Fault(DIED, f"the process that decoded it ended {self._ending()}, twice")

    def _answers(self) -> bool:
        """Whether an answer comes in time. The worker's own time counts, for on a busy machine it may have to wait its turn.

        It is looked at only when the first tenth is over: most answers are there by then, and looking costs more than they do.
        """
        if self.connection.poll(self.seconds / 10):
            return True
        end, used = time.monotonic() + PATIENCE * self.seconds, self._cpu_seconds()
        while time.monotonic() < end and self._cpu_seconds() - used < 0.9 * self.seconds:
            if self.connection.poll(self.seconds / 10):
                return True
        return False

    def _cpu_seconds(self) -> float:
        """What the worker has used; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.process.pid}/stat") as file:
                user, system = file.read().rpartition(")")[2].split()[11:13]
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _ending(self) -> str:
        """How it ended by itself, or by us if it closed its socket and lives on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.end()
        code = self.process.returncode
        return f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _environment() -> dict[str, str]:
    """That of this process, its module path included; one thread each, for there is a process for each core."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


# ---- in a worker


def serve(descriptor: int, parent: int, memory: int) -> None:
    """What a worker does: takes a function, then batches, and answers input by input until nobody asks any more."""
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C reaches all processes; the parent decides
    with contextlib.suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        function = connection.recv()
        _limit(memory)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)    # decoders chat about damage and name no file; outcomes tell it
        connection.send(READY)
        while True:
            for one in connection.recv():
                connection.send(_outcome(function, one))


def _outcome(function: Callable, one: object) -> object:
    try:
        return function(one)
    except MemoryError:
        return Fault(TOO_LARGE, "it takes more memory than a picture may")
    except Exception:    # a mistake of ours; an exception itself may not survive the way
        return _Bug(traceback.format_exc())


def _limit(memory: int) -> None:
    """No more address space than now and `memory` bytes; and no core files, which a crash for each bad input would leave."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(FileNotFoundError), open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))


def _end_with(parent: int) -> None:
    """Makes the kernel kill this process when the thread that started it ends, or does so if that is already gone."""
    with contextlib.suppress(AttributeError, OSError):    # not on this system
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
