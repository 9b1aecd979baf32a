"""End a flow when its worker ends: it could not be cancelled any more, and would keep its slot."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil

from thousandwords.core.processes import end_with

GRACE = 20.0  # seconds until the rest is killed: longer than the supervisors of the stages need


def end_with_worker() -> None:
    """Watch the worker, the parent of a process that leads a process group; nothing for a flow in a terminal."""
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
