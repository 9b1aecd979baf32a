"""A flow that a worker started ends with that worker: nobody would hear its cancellation, nor free its place."""
from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time

import psutil

GRACE = 20.0  # seconds until what did not end by itself is killed: more than the keepers of the stages take


def end_with_worker() -> None:
    """Watches the worker, which is the parent of a process that leads a group of its own; does nothing in a terminal's."""
    if "PREFECT__FLOW_RUN_ID" not in os.environ or os.getpgrp() != os.getpid():
        return
    worker = os.getppid()
    handle = os.pidfd_open(worker)
    if os.getppid() != worker or not is_worker(worker):
        os.killpg(os.getpgrp(), signal.SIGTERM)
    threading.Thread(target=_end_after, args=(handle,), daemon=True).start()


def is_worker(process: int) -> bool:
    """False for init, which inherits a flow whose worker died while the flow was being prepared."""
    if "PREFECT__WORKER_NAME" not in os.environ:
        return True  # another kind of starter
    with contextlib.suppress(psutil.Error):
        return "worker" in psutil.Process(process).cmdline()
    return False


def _end_after(handle: int) -> None:
    select.select([handle], [], [])
    os.killpg(os.getpgrp(), signal.SIGTERM)  # the flow, its keepers and its stages at once, as a cancellation does
    time.sleep(GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)
