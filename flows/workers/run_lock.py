"""One run at a time in a folder: the next one waits until the one before, and all that it started, has ended."""
from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PLACE = Path(".dvc/tmp/flow.lock")
_held: list[int] = []


@contextlib.contextmanager
def alone(tell: Callable[[str], None], place: Path = PLACE) -> Iterator[None]:
    """Holds the kernel lock of this folder; a flow within a flow of the same process has it already. `tell` is told of a wait."""
    if _held:
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "a") as file:
        _wait(file.fileno(), tell)
        _held.append(file.fileno())
        try:
            yield
        finally:
            _held.clear()


def held_places() -> tuple[int, ...]:
    """Handles of the lock for those that have to end before it is free: a kernel lock ends with its last handle."""
    return tuple(_held)


def _wait(handle: int, tell: Callable[[str], None]) -> None:
    is_told = False
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_told:
                tell("another run is at work in this folder; this one waits for it")
            is_told = True
            time.sleep(0.2)
