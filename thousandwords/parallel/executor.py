"""Units of work over processes or machines: the same results in the same order, whoever did them.

    for unit, result in run_units(open_worker, units, engine_of(params, device), "tokenize_pairs"): ...

`open_worker(device)` loads what the work needs, once per worker, and returns the work on one unit. How the work is shared out is
said by the section `engine` of params.yaml, which no stage but the check depends on: it changes no byte, so DVC runs nothing
again for it. A worker therefore computes with as many threads as one process alone would, since sums are cut up by threads.

A worker that dies costs its unit alone, which is tried again in a fresh one. What works is in `_hand.py`, Ray in `_ray.py`.
"""
from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Pipe
from threading import Lock
from typing import Any, Literal, Protocol, TypeVar

import torch

from stages._hand import Bug, Failed, Opener, Outcome
from stages._progress import progress
from thousandwords.config import ConfigError, section
from thousandwords.desks import Crew, Desk
from thousandwords.errors import UserError

Unit = TypeVar("Unit")
Result = TypeVar("Result")

ATTEMPTS = 3  # for a unit whose worker dies
AHEAD = 2  # units for each worker that are at work or wait for their turn: results are kept in memory until it comes
SERVE = "import sys; from stages._hand import serve; serve(*map(int, sys.argv[1:]))"
MEND_RAY = "Run on every machine: make ray, or set engine.kind: local"


@dataclass(frozen=True)
class Config:
    """The optional section `engine` of params.yaml; without it one process does all."""

    kind: Literal["local", "ray"] = "local"
    workers: int | Literal["auto"] = 1  # auto: one per GPU, or as many as have cores of their own
    address: str = "auto"  # of a Ray cluster that this machine belongs to, HOST:PORT; auto: RAY_ADDRESS, or the one running here

    def __post_init__(self) -> None:
        if self.workers != "auto" and self.workers < 1:
            raise ValueError(f"engine.workers is {self.workers}; it needs to be 1 or more, or auto")
        if self.kind == "local" and self.address != "auto":
            raise ValueError(f"engine.address is {self.address!r}, but engine.kind is local. Set engine.kind: ray")


def read_engine(params: dict) -> Config:
    """The section `engine`, or one process where there is none; raises ConfigError, also where Ray is wanted but missing."""
    config = section(params["engine"], "engine", Config) if "engine" in params else Config()
    if config.kind == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError(f"params.yaml: engine.kind is ray, but Ray is not installed. {MEND_RAY}")
    return config


@dataclass(frozen=True)
class Engine:
    """Who does the work: settings, and what each worker computes on."""

    config: Config
    device: str  # cpu, cuda, or one GPU of several
    threads: int

    @property
    def is_alone(self) -> bool:
        """Whether this very process does all of it."""
        return self.config.kind == "local" and self.count(2) == 1

    def count(self, units: int) -> int:
        """How many workers here are of use for so many units."""
        wanted = self.config.workers
        if wanted == "auto":
            wanted = places(self.device, self.threads, os.cpu_count() or 1, torch.cuda.device_count())
        return min(wanted, units)

    @property
    def device_kind(self) -> str:
        return self.device.partition(":")[0]


def places(device: str, threads: int, cores: float, gpus: float) -> int:
    """How many workers of so many threads have a GPU, or cores, of their own: places("cpu", 2, 8, 0) -> 4."""
    return max(1, int(cores) // threads if device.startswith("cpu") else int(gpus))


def engine_of(params: dict, device: str) -> Engine:
    return Engine(read_engine(params), device, torch.get_num_threads())


def run_units(open_worker: Opener, units: Sequence[Unit], engine: Engine, label: str) -> Iterator[tuple[Unit, Result]]:
    """(unit, result) in the order of `units`; no worker outlives the iterator.

    Raises what the work raises, if it is an error of the user's or of the system's; RuntimeError with the traceback otherwise,
    and UserError where a unit has ended `ATTEMPTS` workers.
    """
    if not units:
        return
    if engine.is_alone:
        work = open_worker(engine.device)
        yield from ((unit, work(unit)) for unit in units)
        return
    with _hiring(open_worker, engine) as (hire, free), _Crew(hire, min(free, len(units)), label) as crew:
        yield from progress(crew.results(units), label, len(units), "unit")


# ---- in the process that has the units


class Died(Exception):
    """A worker ended while it was at work."""


class NoPlace(UserError):
    """Nowhere is there room for a worker."""


class Worker(Protocol):
    """A place where work is done. Born cheaply, so that whoever gives up can end it while it starts."""

    def start(self) -> object: ...

    def do(self, unit: object) -> object: ...

    def end(self) -> None: ...


def result_of(outcome: Outcome) -> Any:
    if isinstance(outcome, Failed):
        raise outcome.error
    if isinstance(outcome, Bug):
        raise RuntimeError(f"a worker failed:\n{outcome.trace}")
    return outcome.value


class _Crew(Crew):
    """`count` desks that are handed units."""

    def __init__(self, hire: Callable[[int], Worker], count: int, label: str) -> None:
        super().__init__([_Desk(partial(hire, number), label) for number in range(count)], "engine")
        self.label, self.closing = label, Lock()

    def results(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Result]]:
        waiting: deque = deque()
        for unit in units:
            waiting.append((unit, self.threads.submit(self._work, unit)))
            while len(waiting) >= AHEAD * len(self.desks):
                first, future = waiting.popleft()
                yield first, future.result()
        for unit, future in waiting:
            yield unit, future.result()

    def _work(self, unit: Unit) -> Result:
        while True:
            desk = self.free.get()
            try:
                outcome = desk.do(unit)
            except NoPlace as error:  # fewer machines than before, or than hoped: whoever has a place takes this unit
                self._do_without(desk, error)
                continue
            except BaseException:
                self.free.put(desk)
                raise
            self.free.put(desk)
            return result_of(outcome)

    def _do_without(self, desk: _Desk, error: NoPlace) -> None:
        """Gives up a desk; raises its error where it was the last."""
        with self.closing:
            self.desks.remove(desk)
            if not self.desks:
                self.desks.append(desk)
                self.free.put(desk)
                raise error
            print(f"{self.label}: {error}; going on with {len(self.desks)} workers", file=sys.stderr, flush=True)


class _Desk(Desk[Worker]):
    """The place of one worker, which is replaced when it dies."""

    def __init__(self, hire: Callable[[], Worker], label: str) -> None:
        self._hire, self.label = hire, label

    def hire(self) -> Worker:
        return self._hire()

    def do(self, unit: object) -> Outcome:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ask(unit)
            except Died as error:
                self.dismiss()
                if not self.is_closed:
                    told = f"{self.label}: a worker died at {unit} ({error}), attempt {attempt} of {ATTEMPTS}"
                    print(told, file=sys.stderr, flush=True)
        raise UserError(
            f"{unit} has ended {ATTEMPTS} workers, which is often a lack of memory. "
            "Lower engine.workers, or the section's batch_size"
        )

    def _ask(self, unit: object) -> Outcome:
        worker, is_new = self.seated()
        if is_new:
            try:
                opened = worker.start()
            except NoPlace:
                self.dismiss()
                raise
            if isinstance(opened, Failed | Bug):
                self.dismiss()
                return opened
        return worker.do(unit)


@contextlib.contextmanager
def _hiring(open_worker: Opener, engine: Engine) -> Iterator[tuple[Callable[[int], Worker], int]]:
    """(how to hire worker number n, how many there are to be)"""
    if engine.config.kind == "local":
        yield partial(LocalWorker, open_worker, engine), engine.count(sys.maxsize)
        return
    from stages._ray import Cluster  # it imports Ray, an optional extra

    with Cluster(engine) as cluster:
        yield partial(cluster.hire, open_worker), cluster.count()


# ---- a process of this machine


class LocalWorker:
    """A fresh interpreter on a socket of its own: no fork, since torch's threads do not survive one."""

    def __init__(self, open_worker: Opener, engine: Engine, number: int) -> None:
        self.order = (open_worker, engine.device_kind)
        self.connection, theirs = Pipe()
        words = [sys.executable, "-P", "-c", SERVE, str(theirs.fileno()), str(os.getpid())]
        more = {**_threads(engine), **_gpu(engine, number), "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        self.process = subprocess.Popen(
            words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **more}
        )
        theirs.close()

    def start(self) -> Outcome:
        return self._answer(self.order)

    def do(self, unit: object) -> Outcome:
        return self._answer(unit)

    def _answer(self, message: object) -> Outcome:
        try:
            self.connection.send(message)
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise Died(self._ending()) from error

    def _ending(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.end()
        code = self.process.returncode
        return f"code {code}" if code >= 0 else signal.Signals(-code).name

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _threads(engine: Engine) -> dict[str, str]:
    return {f"{name}_NUM_THREADS": str(engine.threads) for name in ("OMP", "OPENBLAS", "MKL")}


def _gpu(engine: Engine, number: int) -> dict[str, str]:
    """Worker `number` sees one GPU of those that this process sees."""
    if engine.device_kind != "cuda":
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = seen.split(",")
    return {"CUDA_VISIBLE_DEVICES": names[number % len(names)]}
