"""What keeps two runs out of one folder and leaves none behind: kernel locks, and an eye on whoever started this process.

A lock belongs to the process, not to the file: it ends with its holder, however that ends, and nothing is to be cleared up.
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

from thousandwords.distributed import is_started_by_torchrun
from thousandwords.errors import UserError
from thousandwords.files import telling

STARTERS = {
    "dvc", "torchrun", "torch.distributed.run", "flows.keeper", "flows.pipeline", "flows.run", "prefect.engine",
    "prefect.flow_engine",
}  # fmt: skip
GRACE = 7.0  # seconds for a last checkpoint, once whoever started this process is gone
PATIENCE = GRACE + 3  # seconds to wait for one that is in its last seconds


@contextlib.contextmanager
def locked(path: Path, told: str) -> Iterator[None]:
    """Holds the lock `path`; raises UserError with `told`, its {holder} the process that holds it, where another does."""
    with telling(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path, told)
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
    finally:
        with file, contextlib.suppress(OSError):
            path.unlink()


def _lock(path: Path, told: str) -> IO[str]:
    deadline = time.monotonic() + PATIENCE
    while True:
        file = open(path, "a+")  # noqa: SIM115  it is held as long as the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            if not _is_left_behind(holder) or time.monotonic() > deadline:
                raise UserError(told.replace("{holder}", f"process {holder}")) from error
            time.sleep(0.1)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # whoever held it took the file away while this process was opening it


def _is_left_behind(holder: str) -> bool:
    """Whether the process was started by a `dvc` that is gone: it has a few seconds for a last checkpoint, and then ends."""
    try:
        process = psutil.Process(int(holder))
        return "DVC_STAGE" in process.environ() and not any(_is_starter(one, {"dvc"}) for one in process.parents())
    except (ValueError, psutil.Error):
        return False


def sole_writer(out: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of an output: whatever stage writes it, started wherever, is the only one.

    It lies beside the output, not in it: DVC removes an output before it is made anew, and a lock in it would go along.
    """
    place = Path(out).resolve()
    return locked(place.with_name(f".{place.name}.lock"), f"{out} is being written by {{holder}}. Wait for it, or stop it")


def end_with_starters() -> None:
    """Ends this process soon after the `dvc`, `torchrun` or flow that started it: nobody would take up what it leaves.

    A kill -9 of any of them reaches nobody else, and the next `dvc repro` would remove what this process is writing. Where
    none of them has a part, as in a stage started by hand, nothing is watched. Linux only.
    """
    ancestors = psutil.Process().parents()
    starters = [ancestor.pid for ancestor in ancestors if _is_starter(ancestor)]
    if not starters and len(ancestors) < 2 and (is_started_by_torchrun() or "DVC_STAGE" in os.environ):
        raise UserError("what started this process is gone already, so this process ends, too. Run the same again")
    if hasattr(os, "pidfd_open"):
        end_with(*starters)


def end_with(*pids: int) -> None:
    """As soon as one of `pids` has ended, SIGTERM for this process, which then keeps what it can; after `GRACE`, SIGKILL."""
    handles = []
    for pid in pids:
        with contextlib.suppress(OSError):  # gone in this moment, or a kernel without such handles
            handles.append(os.pidfd_open(pid))
    if handles:
        threading.Thread(target=_end_after, args=(handles,), daemon=True).start()


def _end_after(handles: list[int]) -> None:
    select.select(handles, [], [])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_starter(process: psutil.Process, names: Collection[str] = STARTERS) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    programs = words[:2] + [module for flag, module in zip(words, words[1:], strict=False) if flag == "-m"]
    return any(Path(word).name in names for word in programs)
