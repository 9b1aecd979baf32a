"""A pool of workers that may die: results in order, few in memory, and only the item of a dead worker is lost.

Each worker is a new interpreter with its own socket, and the pool knows which item it works on.

No library: in pebble 5.2.3 (measured) the task of a worker that exits with code 0 never ends, and a task per
image takes 40 to 60 % more CPU time; loky loses all work in progress with one worker. Both, as
`multiprocessing`, import the main module again, which in a stage is MLflow and in a script without a guard the
whole script. Not forks: a fork may inherit a lock of torch's threads that is never released.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Pipe
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol

from thousandwords.core.errors import UserError
from thousandwords.parallel.worker import Opener, Outcome

SERVE = "import sys; from thousandwords.parallel.worker import serve; serve(*map(int, sys.argv[1:]))"


class WorkerDied(Exception):
    """A worker ended during its work; the text is how: "SIGSEGV", "code 3"."""


class NoCapacity(UserError):
    """There is no free capacity for a worker."""


class Worker(Protocol):
    """A process or actor that does the work. Its constructor is fast. `end` may be called from any thread."""

    def open(self) -> Outcome: ...

    def run(self, items: Sequence) -> Iterator[Outcome]: ...

    def end(self) -> None: ...


class Pool(contextlib.AbstractContextManager):
    """`count` slots, each with a worker and a thread that waits for it, so a slow worker blocks no other.

    `start_worker(slot)` starts a worker. `on_death(item, error, attempt)` returns the result of an item whose
    worker has died, or None to try it again in a new worker. Leaving the context ends all workers at once.
    """

    def __init__(
        self,
        start_worker: Callable[[int], Worker],
        count: int,
        on_death: Callable[[Any, WorkerDied, int], Any],
        label: str,
    ) -> None:
        self.start_worker, self.on_death, self.label, self.num_slots = start_worker, on_death, label, count
        self.workers: dict[int, Worker] = {}
        self.lock, self.is_closed = Lock(), False
        self.free: SimpleQueue[int] = SimpleQueue()
        while self.free.qsize() < count:
            self.free.put(self.free.qsize())
        self.threads = ThreadPoolExecutor(count, label)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.is_closed = True
        for slot in list(self.workers):
            self._end_worker(slot)
        self.threads.shutdown(cancel_futures=True)

    def results(self, batches: Iterable[Sequence], ahead: int) -> Iterator[tuple[Any, Any]]:
        """(item, result) in the order of the items; at most `ahead` batches per slot are not yielded yet."""
        waiting: deque = deque()
        for batch in batches:
            waiting.append((batch, self.threads.submit(self._work, batch)))
            while len(waiting) >= ahead * self.num_slots:
                first, future = waiting.popleft()
                yield from zip(first, future.result(), strict=True)
        for batch, future in waiting:
            yield from zip(batch, future.result(), strict=True)

    def _work(self, batch: Sequence) -> list:
        slot = self.free.get()
        try:
            return self._results(slot, batch)
        except NoCapacity as error:  # fewer machines than before or than expected
            if not self._remove_slot(error):
                raise
            slot = None
        finally:
            if slot is not None:
                self.free.put(slot)
        return self._work(batch)  # in another slot

    def _results(self, slot: int, batch: Sequence) -> list:
        results, attempt = [], 1
        while len(results) < len(batch):
            try:
                for outcome in self._open_worker(slot).run(batch[len(results) :]):
                    results.append(outcome.unwrap())
                    attempt = 1
            except WorkerDied as error:
                self._end_worker(slot)
                if self.is_closed:
                    raise
                result = self.on_death(batch[len(results)], error, attempt)
                attempt += 1
                if result is not None:
                    results.append(result)
                    attempt = 1
            except BaseException:  # the worker may send more outcomes
                self._end_worker(slot)
                raise
        return results

    def _open_worker(self, slot: int) -> Worker:
        """The worker of a slot; if it is new, it is opened first."""
        with self.lock:
            if self.is_closed:
                raise RuntimeError("the work was left early")
            if (worker := self.workers.get(slot)) is not None:
                return worker
            worker = self.workers[slot] = self.start_worker(slot)
        worker.open().unwrap()
        return worker

    def _end_worker(self, slot: int) -> None:
        with self.lock:
            worker = self.workers.pop(slot, None)
        if worker is not None:
            worker.end()

    def _remove_slot(self, reason: NoCapacity) -> bool:
        """Go on with one slot less; False if it is the last."""
        with self.lock:
            if self.num_slots == 1:
                return False
            self.num_slots -= 1
            message = f"{self.label}: {reason}; going on with {self.num_slots} workers"
            print(message, file=sys.stderr, flush=True)
            return True


class LocalWorker:
    """A process of this machine. Its environment is that of this process with some variables changed."""

    def __init__(self, open_worker: Opener, device: str, variables: dict[str, str]) -> None:
        self.arguments = (open_worker, device)
        self.connection, child_end = Pipe()
        command = [sys.executable, "-P", "-c", SERVE, str(child_end.fileno()), str(os.getpid())]
        module_path = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        # Ctrl-C reaches a worker too, which ignores it once it serves; until then the signal is blocked there
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **variables, **module_path},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        child_end.close()

    def open(self) -> Outcome:
        return next(self._ask(self.arguments, 1))

    def run(self, items: Sequence) -> Iterator[Outcome]:
        return self._ask(items, len(items))

    def _ask(self, message: object, num_answers: int) -> Iterator[Outcome]:
        try:
            self.connection.send(message)
            for _ in range(num_answers):
                yield self.connection.recv()
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


def thread_variables(count: int) -> dict[str, str]:
    return {f"{name}_NUM_THREADS": str(count) for name in ("OMP", "OPENBLAS", "MKL")}
