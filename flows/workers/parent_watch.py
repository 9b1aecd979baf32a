"""End a flow when its worker ends: it could not be cancelled any more, and would keep its slot."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time

import psutil

GRACE = 20.0  # seconds until the rest is killed: longer than the supervisors of the stages need


def end_with_worker() -> None:
    """Watch the worker, the parent of a process that leads a process group.

    Does nothing for a flow in a terminal.
    """
    if "PREFECT__FLOW_RUN_ID" not in os.environ or os.getpgrp() != os.getpid():
        return
    worker = os.getppid()
    handle = os.pidfd_open(worker)
    if os.getppid() != worker or not is_worker(worker):
        os.killpg(os.getpgrp(), signal.SIGTERM)
    threading.Thread(target=_end_after, args=(handle,), daemon=True).start()


def is_worker(pid: int) -> bool:
    """False for init, which becomes the parent if the worker died while it prepared the flow."""
    if "PREFECT__WORKER_NAME" not in os.environ:
        return True  # started by something else than a worker
    with contextlib.suppress(psutil.Error):
        return "worker" in psutil.Process(pid).cmdline()
    return False


def _end_after(handle: int) -> None:
    select.select([handle], [], [])
    os.killpg(os.getpgrp(), signal.SIGTERM)  # flow, supervisors and stages at once, as a cancellation does
    time.sleep(GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)
