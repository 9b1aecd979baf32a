"""Which process may use which GPU: decided by a kernel lock per GPU, independently of Prefect.

A lock ends with its holder, however that ends. Processes that a killed holder left behind carry its mark in
their environment, and are ended before the GPU goes to the next holder.
"""

import contextlib
import csv
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
from pathlib import Path
from typing import IO

import psutil

from thousandwords.core.errors import UserError
from thousandwords.core.locks import holder, read_note, take_lock, write_note

MARK = "THOUSANDWORDS_GPU_RUN"  # in the environment of everything that a holder starts
GRACE = 10.0  # seconds for a last checkpoint: a stage's own limit is 7 (stages/runtime/locks.py)
REPORT_SECONDS = 60.0  # between two messages of a wait


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
def hold(count: int, what: str) -> Iterator[dict[str, str]]:
    """Hold `count` of the visible GPUs: the environment of the processes that use them. Reports a wait.

    Without GPUs nothing is held. Raises UserError if some are visible, but fewer than `count`.
    """
    names, mark = visible(), uuid.uuid4().hex
    if names and len(names) < count:
        raise UserError(
            f"{what} needs {count} GPUs, but CUDA_VISIBLE_DEVICES has {len(names)} ({', '.join(names)}). "
            "Set fewer in flows/workers/placement.yaml, or start the workers with --gpus-per-worker"
        )
    taken: dict[str, IO[str]] = {}
    last_report = -REPORT_SECONDS
    while names and len(taken := _take(names, count)) < count:
        if time.monotonic() - last_report > REPORT_SECONDS:
            last_report = time.monotonic()
            print(f"{what} waits for a GPU: {'; '.join(holders(names))}", file=sys.stderr, flush=True)
        time.sleep(0.2)
    for file in taken.values():
        if earlier := read_note(Path(file.name)).get("mark"):
            end_all(lambda earlier=earlier: marked(earlier))  # what a killed holder left behind
        write_note(file, mark=mark, what=what, since=time.time())
    try:
        yield {"CUDA_VISIBLE_DEVICES": ",".join(taken), MARK: mark}
    finally:
        _free(taken)


def _take(names: list[str], count: int) -> dict[str, IO[str]]:
    """The locked files of `count` GPUs; less than these are freed, for a process that needs no more."""
    taken: dict[str, IO[str]] = {}
    for name, path in _lock_files(names).items():
        if len(taken) < count and (file := take_lock(path)):
            taken[name] = file
    if len(taken) < count:
        _free(taken)
    return taken


def _free(taken: dict[str, IO[str]]) -> None:
    for file in taken.values():
        file.close()


def _lock_files(names: list[str]) -> dict[str, Path]:
    """The lock file of each GPU, named by its uuid. Not in the home folder, which machines share."""
    default = f"{tempfile.gettempdir()}/thousandwords-gpus-{os.getuid()}"
    folder, uuids = Path(os.environ.get("THOUSANDWORDS_GPU_LOCKS") or default), installed()
    return {name: folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', uuids.get(name, name))}.lock" for name in names}


def holders(names: list[str]) -> list[str]:
    """A line for each GPU: "GPU 0 is free", or "GPU 0: train_generator, process 7, for 12 min"."""
    lines = []
    for name, path in _lock_files(names).items():
        if (note := holder(path)) is None:
            lines.append(f"GPU {name} is free")
        else:
            minutes = int(time.time() - note.get("since", time.time())) // 60
            process = f"process {note.get('pid', '?')}, for {minutes} min"
            lines.append(f"GPU {name}: {note.get('what', 'unknown')}, {process}")
    return lines


def marked(value: str, mark: str = MARK) -> list[psutil.Process]:
    """The other processes with this value of the variable `mark`; those of other users cannot be read."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(mark) == value:
                processes.append(process)
    return processes


def end_all(find: Callable[[], list[psutil.Process]], grace: float | None = None) -> None:
    """Send SIGTERM to every process that `find` lists, SIGKILL after `grace`; returns once it lists none."""
    deadline, asked = time.monotonic() + (GRACE if grace is None else grace), set()
    while processes := find():
        is_late = time.monotonic() > deadline
        for process in processes:
            if is_late or process.pid not in asked:
                asked.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
        time.sleep(0.05)
