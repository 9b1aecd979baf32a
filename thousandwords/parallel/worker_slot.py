"""Worker slots: each has one worker and one thread that waits for it, so a slow worker blocks no other.

A worker is any object with `end()`. It may die, be replaced, or be ended from another thread while it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar


class Ends(Protocol):
    def end(self) -> None: ...


Worker = TypeVar("Worker", bound=Ends)
Slot = TypeVar("Slot", bound="WorkerSlot")


class WorkerSlot(Generic[Worker]):
    """The slot of one worker, which is replaced when it fails. A subclass defines how to start a worker."""

    worker: Worker | None = None
    is_closed = False

    def start(self) -> Worker:
        raise NotImplementedError

    def get(self) -> tuple[Worker, bool]:
        """(the worker, whether it is new); RuntimeError if the slot was closed."""
        is_new = self.worker is None and not self.is_closed
        if is_new:
            self.worker = self.start()
        if self.is_closed:  # checked after the start: either `close` sees the new worker, or it is ended here
            self.restart()
            raise RuntimeError("the work was left early")
        return self.worker, is_new

    def restart(self) -> None:
        """End the worker; the next `get` starts another."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def close(self) -> None:
        """End the worker and allow no new one; may be called from any thread."""
        self.is_closed = True
        if (worker := self.worker) is not None:
            worker.end()


class WorkerPool(Generic[Slot]):
    """Slots with a thread each, and the queue of free slots. Leaving the context ends all workers at once."""

    def __init__(self, slots: Sequence[Slot], name: str) -> None:
        self.slots = list(slots)
        self.free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self.slots:
            self.free.put(slot)
        self.threads = ThreadPoolExecutor(len(self.slots), name)

    def __enter__(self) -> WorkerPool[Slot]:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            slot.close()
        self.threads.shutdown(cancel_futures=True)
