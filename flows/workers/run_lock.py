"""One run at a time per folder: the next waits until the current one and all its processes have ended.

A flow ends when its worker ends: it could not be cancelled any more, and would keep its slot.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil

from flows.dvc.repro import StageFailed, stream
from thousandwords.core.locks import take_lock
from thousandwords.core.processes import end_with

LOCK_FILE = Path(".dvc/tmp/flow.lock")
GRACE = 20.0  # seconds until the rest of a flow is killed: longer than the supervisors of the stages need
_files: list[IO[str]] = []


@contextlib.contextmanager
def run_lock(log: Callable[[str], None]) -> Iterator[None]:
    """Hold this folder's lock, which an outer flow of this process may hold already; `log` a wait."""
    if _files:
        yield
        return
    end_with_worker()
    if not (file := take_lock(LOCK_FILE)):
        log("another run is active in this folder; this one waits for it")
    while not (file := file or take_lock(LOCK_FILE)):
        time.sleep(0.2)
    with file:
        _files.append(file)
        try:
            yield
        finally:
            _files.clear()


def run_locked(command: Sequence[str], on_line: Callable[[str], None], what: str) -> list[str]:
    """The output of a command that holds the lock as long as it lives. Raises StageFailed with its last lines."""
    code, lines = stream(command, on_line, lock_handles())
    if code:
        raise StageFailed(f"{what} failed with code {code}: " + " / ".join(lines[-5:]))
    return lines


def lock_handles() -> tuple[int, ...]:
    """Handles of the lock for child processes, which hold it as long as they live."""
    return tuple(file.fileno() for file in _files)


def end_with_worker() -> None:
    """End with the worker, the parent of a process that leads a process group; nothing for a flow in a terminal."""
    if "PREFECT__FLOW_RUN_ID" not in os.environ or os.getpgrp() != os.getpid():
        return
    worker = os.getppid()
    # flow, supervisors and stages at once, as a cancellation does
    end_with(worker, grace=GRACE, whole_group=True)
    if os.getppid() != worker or not is_worker(worker):
        os.killpg(os.getpgrp(), signal.SIGTERM)


def is_worker(pid: int) -> bool:
    """False for init, which becomes the parent if the worker died while it prepared the flow."""
    if "PREFECT__WORKER_NAME" not in os.environ:
        return True  # started by something else than a worker
    with contextlib.suppress(psutil.Error):
        return "worker" in psutil.Process(pid).cmdline()
    return False
