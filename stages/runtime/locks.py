"""Kernel locks that keep two runs out of one folder, and an end for processes whose launcher has died.

A lock belongs to the process, not to the file: it ends with its holder, however that ends, and needs no
cleaning up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import psutil

from thousandwords.core.errors import UserError
from thousandwords.core.files import translate_write_errors
from thousandwords.training.distributed import is_started_by_torchrun

LAUNCHERS = {
    "dvc",
    "torchrun",
    "torch.distributed.run",
    "stages.runtime.torchrun",
    "flows.workers.supervisor",
    "flows.pipeline",
    "flows.run_local",
    "prefect.engine",
    "prefect.flow_engine",
}
GRACE_SECONDS = 7.0  # for a last checkpoint, after the launcher of this process has ended
LOCK_TIMEOUT = GRACE_SECONDS + 3  # for a holder whose launcher has ended


@contextlib.contextmanager
def hold_lock(path: Path, message: str) -> Iterator[None]:
    """Hold the lock `path`; raises UserError with `message`, {holder} filled in, if another process holds
    it."""
    with translate_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path, message)
    try:
        with contextlib.suppress(OSError):  # the lock holds even on a full disk
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
    finally:
        with file, contextlib.suppress(OSError):
            path.unlink()


def _lock(path: Path, message: str) -> IO[str]:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        file = open(path, "a+")  # noqa: SIM115  stays open as long as the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            if not _is_orphaned(holder) or time.monotonic() > deadline:
                raise UserError(message.replace("{holder}", f"process {holder}")) from error
            time.sleep(0.1)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its holder removed the file while this process was opening it


def _is_orphaned(holder: str) -> bool:
    """Whether the process was started by a `dvc` that has ended: it writes a last checkpoint and then ends
    too."""
    try:
        process = psutil.Process(int(holder))
        return "DVC_STAGE" in process.environ() and not any(
            _is_launcher(ancestor, {"dvc"}) for ancestor in process.parents()
        )
    except (ValueError, psutil.Error):
        return False


def output_lock(out: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of an output: only one stage writes it at a time, wherever it was started.

    It lies beside the output, not inside: DVC removes an output before it is made again, and would remove the
    lock with it.
    """
    path = Path(out).resolve()
    return hold_lock(
        path.with_name(f".{path.name}.lock"), f"{out} is being written by {{holder}}. Wait for it, or stop it"
    )


def end_with_launchers() -> None:
    """End this process soon after the `dvc`, `torchrun` or flow that started it has ended.

    A kill -9 of one of them does not reach this process, and the next `dvc repro` would remove what it is
    writing. A stage that was started by hand has no such launcher, and nothing is watched. Linux only.
    """
    ancestors = psutil.Process().parents()
    launchers = [ancestor.pid for ancestor in ancestors if _is_launcher(ancestor)]
    if not launchers and len(ancestors) < 2 and (is_started_by_torchrun() or "DVC_STAGE" in os.environ):
        raise UserError(
            "the process that started this one has already ended, so this one ends too. Run the same again"
        )
    if hasattr(os, "pidfd_open"):
        end_with(*launchers)


def end_with(*pids: int) -> None:
    """When one of `pids` ends, send SIGTERM to this process, which then saves its state; after GRACE_SECONDS,
    SIGKILL."""
    handles = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended, or the kernel has no such handles
            handles.append(os.pidfd_open(pid))
    if handles:
        threading.Thread(target=_end_after, args=(handles,), daemon=True).start()


def _end_after(handles: list[int]) -> None:
    select.select(handles, [], [])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_launcher(process: psutil.Process, names: Collection[str] = LAUNCHERS) -> bool:
    try:
        arguments = process.cmdline()
    except psutil.Error:
        return False
    modules = [module for flag, module in zip(arguments, arguments[1:], strict=False) if flag == "-m"]
    return any(Path(program).name in names for program in arguments[:2] + modules)
