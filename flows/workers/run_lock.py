"""One run at a time per folder: the next waits until the current one and all its processes have ended."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK_FILE = Path(".dvc/tmp/flow.lock")
_handles: list[int] = []


@contextlib.contextmanager
def run_lock(log: Callable[[str], None], path: Path = LOCK_FILE) -> Iterator[None]:
    """Hold the kernel lock of this folder; a flow inside a flow of the same process has it already.

    `log` reports a wait.
    """
    if _handles:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        _wait(file.fileno(), log)
        _handles.append(file.fileno())
        try:
            yield
        finally:
            _handles.clear()


def lock_handles() -> tuple[int, ...]:
    """Handles of the lock for child processes; a kernel lock is free once its last handle is closed."""
    return tuple(_handles)


def _wait(handle: int, log: Callable[[str], None]) -> None:
    is_reported = False
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_reported:
                log("another run is active in this folder; this one waits for it")
            is_reported = True
            time.sleep(0.2)
