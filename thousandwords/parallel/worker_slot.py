"""Desks at which workers sit: each with a thread that waits for its worker, so that one that is slow holds up nobody.

A worker is whatever can `end`. It may die, be replaced, or be ended from another thread while it starts.
"""
from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar


class Ends(Protocol):
    def end(self) -> None: ...


Worker = TypeVar("Worker", bound=Ends)
AnyDesk = TypeVar("AnyDesk", bound="Desk")


class Desk(Generic[Worker]):
    """The place of one worker, which is replaced when it fails; a subclass says how one is hired, and what it is asked."""

    worker: Worker | None = None
    is_closed = False

    def hire(self) -> Worker:
        raise NotImplementedError

    def seated(self) -> tuple[Worker, bool]:
        """(the worker, whether it is a new one); RuntimeError where the desk was closed."""
        is_new = self.worker is None and not self.is_closed
        if is_new:
            self.worker = self.hire()
        if self.is_closed:    # looked at after the hiring: either `close` sees the new worker, or it is ended here
            self.dismiss()
            raise RuntimeError("the work was left early")
        return self.worker, is_new

    def dismiss(self) -> None:
        """Ends the worker: the next to be asked is another."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def close(self) -> None:
        """Ends the worker, and lets no other sit down; from any thread."""
        self.is_closed = True
        if (worker := self.worker) is not None:
            worker.end()


class Crew(Generic[AnyDesk]):
    """Desks, those of them that are free, and a thread for each. Leaving it ends all workers and waits for none of their work."""

    def __init__(self, desks: Sequence[AnyDesk], name: str) -> None:
        self.desks = list(desks)
        self.free: SimpleQueue[AnyDesk] = SimpleQueue()
        for desk in self.desks:
            self.free.put(desk)
        self.threads = ThreadPoolExecutor(len(self.desks), name)

    def __enter__(self) -> Crew[AnyDesk]:
        return self

    def __exit__(self, *_: object) -> None:
        for desk in self.desks:
            desk.close()
        self.threads.shutdown(cancel_futures=True)
