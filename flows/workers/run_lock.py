"""One run at a time per folder: the next waits until the current one and all its processes have ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from thousandwords.core.locks import take_lock

LOCK_FILE = Path(".dvc/tmp/flow.lock")
_files: list[IO[str]] = []


@contextlib.contextmanager
def run_lock(log: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of this folder, and `log` a wait; a flow inside a flow of the same process has it already.

    Raises CannotWrite.
    """
    if _files:
        yield
        return
    is_reported = False
    while not (file := take_lock(LOCK_FILE)):
        if not is_reported:
            log("another run is active in this folder; this one waits for it")
        is_reported = True
        time.sleep(0.2)
    with file:
        _files.append(file)
        try:
            yield
        finally:
            _files.clear()


def lock_handles() -> tuple[int, ...]:
    """Handles of the lock for child processes, which hold it as long as they live."""
    return tuple(file.fileno() for file in _files)
