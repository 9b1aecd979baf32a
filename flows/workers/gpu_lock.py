"""Which process may use which GPU: decided by a kernel lock per GPU, independently of Prefect.

A lock ends with its holder, however that ends. Processes that a killed holder left behind carry its mark in
their environment, and are ended before the GPU goes to the next holder.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from thousandwords.core.errors import UserError

MARK = "THOUSANDWORDS_GPU_RUN"  # in the environment of everything that a holder starts
GRACE = 10.0  # seconds for a last checkpoint: a stage's own limit is 7 (stages/runtime/locks.py)
REPORT_SECONDS = 60.0  # between two messages of a wait


@dataclass(frozen=True)
class Holding:
    """The GPUs that a process holds, as in CUDA_VISIBLE_DEVICES, and the mark of the processes it starts."""

    gpus: tuple[str, ...]
    mark: str

    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), MARK: self.mark}


def locks_folder() -> Path:
    """The folder of this machine's locks: THOUSANDWORDS_GPU_LOCKS, or one per user in the temporary folder.

    Not in the home folder: machines share homes, and GPU 0 of another machine is another GPU.
    """
    return Path(
        os.environ.get("THOUSANDWORDS_GPU_LOCKS")
        or f"{tempfile.gettempdir()}/thousandwords-gpus-{os.getuid()}"
    )


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that a process with this environment sees: those of CUDA_VISIBLE_DEVICES, or all."""
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return list(installed())
    names = [name.strip() for name in value.split(",")]
    return [] if names in ([""], ["-1"]) else names


def installed() -> dict[str, str]:
    """{index: uuid} of the GPUs of this machine, as the driver lists them; empty without a driver."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {row[0].strip(): row[1].strip() for row in csv.reader(output.splitlines()) if len(row) == 2}


@contextlib.contextmanager
def hold(count: int, what: str) -> Iterator[Holding]:
    """Hold `count` of the visible GPUs; waits while other processes hold them, and reports that.

    On a machine without GPUs nothing is held. Raises UserError if some are visible, but fewer than `count`.
    """
    names = visible()
    if not count or not names:
        yield Holding((), uuid.uuid4().hex)
        return
    if len(names) < count:
        raise UserError(
            f"{what} needs {count} GPUs, but CUDA_VISIBLE_DEVICES has {len(names)} ({', '.join(names)}). "
            "Set fewer in flows/workers/placement.yaml, or start the workers with --gpus-per-worker"
        )
    holding, files = _wait(names, count, what)
    try:
        yield holding
    finally:
        for file in files:
            file.close()


def _wait(names: list[str], count: int, what: str) -> tuple[Holding, list[IO[str]]]:
    parent, last_report = os.getppid(), 0.0
    while True:
        taken = _take(names, count)
        if len(taken) == count:
            mark = uuid.uuid4().hex
            for file in taken.values():
                _end_leftovers(file)
                _write_holder(file, mark, what)
            return Holding(tuple(taken), mark), list(taken.values())
        for file in taken.values():  # too few: free them for a process that needs no more
            file.close()
        if os.getppid() != parent:
            raise UserError(f"the process that started {what} has ended, so it no longer waits for a GPU")
        if time.monotonic() - last_report > REPORT_SECONDS:
            last_report = time.monotonic()
            print(f"{what} waits for a GPU: {'; '.join(holders(names))}", file=sys.stderr, flush=True)
        time.sleep(0.2)


def _take(names: list[str], count: int) -> dict[str, IO[str]]:
    uuids, taken = installed(), {}
    for name in names:
        if len(taken) < count and (file := _lock(uuids.get(name, name))):
            taken[name] = file
    return taken


def _path(uuid_: str) -> Path:
    return locks_folder() / f"{re.sub(r'[^A-Za-z0-9-]', '_', uuid_)}.lock"


def _lock(uuid_: str) -> IO[str] | None:
    """The lock of one GPU, or None if another process holds it. The file stays after the lock is released."""
    locks_folder().mkdir(parents=True, exist_ok=True)
    file = open(_path(uuid_), "a+")  # noqa: SIM115  it is open as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _write_holder(file: IO[str], mark: str, what: str) -> None:
    file.seek(0)
    file.truncate()
    json.dump({"pid": os.getpid(), "mark": mark, "what": what, "since": time.time()}, file)
    file.flush()


def _read_holder(file: IO[str]) -> dict:
    file.seek(0)
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(file.read())
    return {}


def holders(names: list[str]) -> list[str]:
    """A line for each GPU: "GPU 0 is free", or "GPU 0: train_generator, process 7, for 12 min"."""
    uuids = installed()
    return [_describe(name, uuids.get(name, name)) for name in names]


def _describe(name: str, uuid_: str) -> str:
    if not _path(uuid_).exists():
        return f"GPU {name} is free"
    with open(_path(uuid_)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(file)
            minutes = int(time.time() - holder.get("since", time.time())) // 60
            what, pid = holder.get("what", "unknown"), holder.get("pid", "?")
            return f"GPU {name}: {what}, process {pid}, for {minutes} min"
    return f"GPU {name} is free"


def _end_leftovers(file: IO[str]) -> None:
    """End the processes that an earlier, killed holder left behind, before the GPU is used again."""
    mark = _read_holder(file).get("mark")
    if mark:
        end_all(lambda: marked(mark))


def marked(mark: str) -> list[psutil.Process]:
    """The processes with this mark in their environment.

    Other users' processes cannot be read and are not meant.
    """
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                processes.append(process)
    return processes


def end_all(find: Callable[[], list[psutil.Process]], grace: float | None = None) -> None:
    """Send SIGTERM to every process that `find` lists, then SIGKILL after `grace`.

    Returns once it lists none.
    """
    deadline, asked = time.monotonic() + (GRACE if grace is None else grace), set()
    while processes := find():
        is_late = time.monotonic() > deadline
        for process in processes:
            if is_late or process.pid not in asked:
                asked.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
        time.sleep(0.05)
