"""Work items over processes or machines: the same results in the same order, for any number of workers.

    for item, result in run_items(open_worker, items, engine_from_params(params, device), "tokenize_pairs"): ...

`open_worker(device)` loads what the work needs, once per worker, and returns the function to call with each
item. The section `engine` of params.yaml sets how the work is distributed. Only the stage `check_params`
depends on it: it changes no byte, so DVC reruns nothing. So a worker uses as many threads as a single process
would, because the number of threads changes how sums round.

If a worker dies, only its item is lost; it is tried again in a new worker. The side of the worker is in
`worker.py`, Ray in `ray_workers.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Pipe
from threading import Lock
from typing import TypeVar

import torch

from thousandwords.core.errors import UserError
from thousandwords.core.progress import progress
from thousandwords.parallel.base import Engine, NoCapacity, Worker, WorkerDied, unwrap
from thousandwords.parallel.worker import Bug, Failed, Opener, Outcome
from thousandwords.parallel.worker_slot import WorkerPool, WorkerSlot

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ATTEMPTS = 3  # for an item whose worker dies
ITEMS_AHEAD = 2  # items per worker that are in progress or wait to be yielded; their results are in memory
SERVE = "import sys; from thousandwords.parallel.worker import serve; serve(*map(int, sys.argv[1:]))"


def run_items(
    open_worker: Opener, items: Sequence[Item], engine: Engine, label: str
) -> Iterator[tuple[Item, Result]]:
    """(item, result) in the order of `items`; no worker outlives the iterator.

    Raises the UserError or OSError of the work, RuntimeError with the traceback of any other exception, and
    UserError if an item has ended `MAX_ATTEMPTS` workers.
    """
    if not items:
        return
    if engine.is_single_process:
        work = open_worker(engine.device)
        yield from ((item, work(item)) for item in items)
        return
    with (
        _worker_factory(open_worker, engine) as (start_worker, num_workers),
        _Pool(start_worker, min(num_workers, len(items)), label) as pool,
    ):
        yield from progress(pool.results(items), label, len(items), "item")


# ---- in the process that has the items


class _Pool(WorkerPool):
    """`count` worker slots that process items."""

    def __init__(self, start_worker: Callable[[int], Worker], count: int, label: str) -> None:
        super().__init__([_Slot(partial(start_worker, number), label) for number in range(count)], "engine")
        self.label, self.closing = label, Lock()

    def results(self, items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        waiting: deque = deque()
        for item in items:
            waiting.append((item, self.threads.submit(self._work, item)))
            while len(waiting) >= ITEMS_AHEAD * len(self.slots):
                first, future = waiting.popleft()
                yield first, future.result()
        for item, future in waiting:
            yield item, future.result()

    def _work(self, item: Item) -> Result:
        while True:
            slot = self.free.get()
            try:
                outcome = slot.run(item)
            except (
                NoCapacity
            ) as error:  # fewer machines than before or than expected: another slot takes this item
                self._remove(slot, error)
                continue
            except BaseException:
                self.free.put(slot)
                raise
            self.free.put(slot)
            return unwrap(outcome)

    def _remove(self, slot: _Slot, error: NoCapacity) -> None:
        """Remove a slot from the pool; raises its error if it was the last."""
        with self.closing:
            self.slots.remove(slot)
            if not self.slots:
                self.slots.append(slot)
                self.free.put(slot)
                raise error
            message = f"{self.label}: {error}; going on with {len(self.slots)} workers"
            print(message, file=sys.stderr, flush=True)


class _Slot(WorkerSlot[Worker]):
    """The slot of one worker, which is replaced when it dies."""

    def __init__(self, start_worker: Callable[[], Worker], label: str) -> None:
        self.start_worker, self.label = start_worker, label

    def start(self) -> Worker:
        return self.start_worker()

    def run(self, item: object) -> Outcome:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return self._try(item)
            except WorkerDied as error:
                self.restart()
                if not self.is_closed:
                    attempts = f"attempt {attempt} of {MAX_ATTEMPTS}"
                    message = f"{self.label}: a worker died at {item} ({error}), {attempts}"
                    print(message, file=sys.stderr, flush=True)
        raise UserError(
            f"{item} has ended {MAX_ATTEMPTS} workers, which is often a lack of memory. "
            "Lower engine.workers, or the section's batch_size"
        )

    def _try(self, item: object) -> Outcome:
        worker, is_new = self.get()
        if is_new:
            try:
                outcome = worker.open()
            except NoCapacity:
                self.restart()
                raise
            if isinstance(outcome, Failed | Bug):
                self.restart()
                return outcome
        return worker.run(item)


@contextlib.contextmanager
def _worker_factory(open_worker: Opener, engine: Engine) -> Iterator[tuple[Callable[[int], Worker], int]]:
    """(function that starts worker number n, maximum number of workers)"""
    if engine.config.kind == "local":
        yield partial(LocalWorker, open_worker, engine), engine.num_workers(sys.maxsize)
        return
    from thousandwords.parallel.ray_workers import Cluster  # it imports Ray, an optional extra

    with Cluster(engine) as cluster:
        yield partial(cluster.start_worker, open_worker), cluster.num_workers()


# ---- a process of this machine


class LocalWorker:
    """A new interpreter with its own socket: no fork, because torch's threads do not survive one."""

    def __init__(self, open_worker: Opener, engine: Engine, number: int) -> None:
        self.arguments = (open_worker, engine.device_kind)
        self.connection, child_end = Pipe()
        command = [sys.executable, "-P", "-c", SERVE, str(child_end.fileno()), str(os.getpid())]
        module_path = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        environment = {
            **os.environ,
            **_thread_variables(engine),
            **_gpu_variable(engine, number),
            **module_path,
        }
        self.process = subprocess.Popen(
            command, pass_fds=[child_end.fileno()], stdin=subprocess.DEVNULL, env=environment
        )
        child_end.close()

    def open(self) -> Outcome:
        return self._call(self.arguments)

    def run(self, item: object) -> Outcome:
        return self._call(item)

    def _call(self, message: object) -> Outcome:
        try:
            self.connection.send(message)
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerDied(self._exit_reason()) from error

    def _exit_reason(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.end()
        code = self.process.returncode
        return f"code {code}" if code >= 0 else signal.Signals(-code).name

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _thread_variables(engine: Engine) -> dict[str, str]:
    return {f"{name}_NUM_THREADS": str(engine.threads) for name in ("OMP", "OPENBLAS", "MKL")}


def _gpu_variable(engine: Engine, number: int) -> dict[str, str]:
    """Worker `number` sees one of the GPUs that this process sees."""
    if engine.device_kind != "cuda":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": names[number % len(names)]}
