"""Locks that keep two runs out of one folder, and an end for stages whose launcher has died."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from thousandwords.core.errors import UserError
from thousandwords.core.locks import holder, take_lock, write_note
from thousandwords.core.processes import end_with
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
    """Hold the lock `path` and remove it afterwards. Raises UserError with `message`, {holder} filled in, if
    another process holds it, and CannotWrite."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while not (file := take_lock(path)):
        pid = (holder(path) or {}).get("pid", "unknown")
        if not _is_orphaned(pid) or time.monotonic() > deadline:
            raise UserError(message.replace("{holder}", f"process {pid}"))
        time.sleep(0.1)
    write_note(file)
    try:
        yield
    finally:
        with file, contextlib.suppress(OSError):
            path.unlink()


def _is_orphaned(pid: int | str) -> bool:
    """Whether the process was started by a `dvc` that has ended: it saves a last checkpoint and ends, too."""
    try:
        process = psutil.Process(pid)
        return "DVC_STAGE" in process.environ() and not _launchers(process, {"dvc"})
    except (TypeError, psutil.Error):
        return False


def output_lock(out: Path) -> contextlib.AbstractContextManager[None]:
    """Only one stage writes an output at a time, wherever it was started. The lock lies beside the output:
    DVC removes an output before it is made again, and all that is in it."""
    path = Path(out).resolve()
    message = f"{out} is being written by {{holder}}. Wait for it, or stop it"
    return hold_lock(path.with_name(f".{path.name}.lock"), message)


def end_with_launchers() -> None:
    """End this process soon after the `dvc`, `torchrun` or flow that started it has ended.

    A kill -9 of one of them does not reach this process, and the next `dvc repro` would remove what it is
    writing. A stage that was started by hand has no such launcher, and nothing is watched.
    """
    process = psutil.Process()
    launchers = _launchers(process)
    has_lost_them = not launchers and len(process.parents()) < 2
    if has_lost_them and (is_started_by_torchrun() or "DVC_STAGE" in os.environ):
        found = "the process that started this one has already ended"
        raise UserError(f"{found}, so this one ends too. Run the same again")
    end_with(*launchers, grace=GRACE_SECONDS)


def _launchers(process: psutil.Process, names: set[str] = LAUNCHERS) -> list[int]:
    """The processes above this one that run one of these programs or modules."""
    return [ancestor.pid for ancestor in process.parents() if names & _programs(ancestor)]


def _programs(process: psutil.Process) -> set[str]:
    try:
        arguments = process.cmdline()
    except psutil.Error:
        return set()
    modules = [module for flag, module in zip(arguments, arguments[1:], strict=False) if flag == "-m"]
    return {Path(program).name for program in arguments[:2] + modules}
