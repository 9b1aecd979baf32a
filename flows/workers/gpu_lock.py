"""Who may use which GPU: a kernel lock per GPU decides, whatever Prefect believes.

A lock ends with its holder, however that ends. What a holder that was killed left running carries its mark in the environment,
and is ended before the GPU goes to the next one.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from thousandwords.errors import UserError

MARK = "THOUSANDWORDS_GPU_RUN"  # in the environment of all that a holder starts
GRACE = 10.0  # seconds for a last checkpoint: a stage's own limit is 7 (stages/_guard.py)
TOLD_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Holding:
    """The GPUs that a process holds, named as CUDA_VISIBLE_DEVICES names them, and the mark of what it starts."""

    gpus: tuple[str, ...]
    mark: str

    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), MARK: self.mark}


def locks_folder() -> Path:
    """Where the locks of this machine lie: THOUSANDWORDS_GPU_LOCKS, or this user's part of the temporary folder.

    Not in the home: homes are shared by machines, and GPU 0 of another machine is another GPU.
    """
    return Path(os.environ.get("THOUSANDWORDS_GPU_LOCKS") or f"{tempfile.gettempdir()}/thousandwords-gpus-{os.getuid()}")


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that a process with this environment sees: those of CUDA_VISIBLE_DEVICES, or all there are."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(installed())
    names = [name.strip() for name in given.split(",")]
    return [] if names in ([""], ["-1"]) else names


def installed() -> dict[str, str]:
    """{index: uuid} of the GPUs of this machine, as the driver lists them; none where there is no driver."""
    if not shutil.which("nvidia-smi"):
        return {}
    asked = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False)
    return {row[0].strip(): row[1].strip() for row in csv.reader(listed.stdout.splitlines()) if len(row) == 2}


@contextlib.contextmanager
def held(wanted: int, what: str) -> Iterator[Holding]:
    """Holds `wanted` of the visible GPUs; waits for them where others hold them, and says so.

    On a machine without GPUs nothing is held. Raises UserError where some are visible, but fewer than wanted.
    """
    seen = visible()
    if not wanted or not seen:
        yield Holding((), uuid.uuid4().hex)
        return
    if len(seen) < wanted:
        raise UserError(
            f"{what} wants {wanted} GPUs, but CUDA_VISIBLE_DEVICES shows {len(seen)} ({', '.join(seen)}). "
            "Ask for fewer in flows/placement.yaml, or start the workers with --gpus-per-worker"
        )
    holding, files = _wait(seen, wanted, what)
    try:
        yield holding
    finally:
        for file in files:
            file.close()


def _wait(seen: list[str], wanted: int, what: str) -> tuple[Holding, list[IO[str]]]:
    starter, told = os.getppid(), 0.0
    while True:
        taken = _take(seen, wanted)
        if len(taken) == wanted:
            mark = uuid.uuid4().hex
            for file in taken.values():
                _end_leftovers(file)
                _note(file, mark, what)
            return Holding(tuple(taken), mark), list(taken.values())
        for file in taken.values():  # one of two is no use, and would keep it from who wants one
            file.close()
        if os.getppid() != starter:
            raise UserError(f"what started {what} is gone, so it no longer waits for a GPU")
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            print(f"{what} waits for a GPU: {'; '.join(holders(seen))}", file=sys.stderr, flush=True)
        time.sleep(0.2)


def _take(seen: list[str], wanted: int) -> dict[str, IO[str]]:
    uuids, taken = installed(), {}
    for name in seen:
        if len(taken) < wanted and (file := _lock(uuids.get(name, name))):
            taken[name] = file
    return taken


def _path(name: str) -> Path:
    return locks_folder() / f"{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"


def _lock(name: str) -> IO[str] | None:
    """The lock of one GPU, or None where another process holds it. Its file stays: a lock is no file, it lies on one."""
    locks_folder().mkdir(parents=True, exist_ok=True)
    file = open(_path(name), "a+")  # noqa: SIM115  it is held as long as the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _note(file: IO[str], mark: str, what: str) -> None:
    file.seek(0)
    file.truncate()
    json.dump({"pid": os.getpid(), "mark": mark, "what": what, "since": time.time()}, file)
    file.flush()


def _read(file: IO[str]) -> dict:
    file.seek(0)
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(file.read())
    return {}


def holders(names: list[str]) -> list[str]:
    """A line for each GPU: "GPU 0 is free", or "GPU 0: train_generator, process 7, for 12 min"."""
    uuids = installed()
    return [_told(name, uuids.get(name, name)) for name in names]


def _told(name: str, known: str) -> str:
    if not _path(known).exists():
        return f"GPU {name} is free"
    with open(_path(known)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            by = _read(file)
            minutes = int(time.time() - by.get("since", time.time())) // 60
            return f"GPU {name}: {by.get('what', 'unknown')}, process {by.get('pid', '?')}, for {minutes} min"
    return f"GPU {name} is free"


def _end_leftovers(file: IO[str]) -> None:
    """Ends what an earlier holder that was killed left running; nobody may have the GPU before that."""
    mark = _read(file).get("mark")
    if mark:
        end_all(lambda: marked(mark))


def marked(mark: str) -> list[psutil.Process]:
    """The processes whose environment has the mark; those of other users cannot be read and are not meant."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def end_all(find, grace: float | None = None) -> None:
    """SIGTERM for every process that `find` gives, then SIGKILL after `grace`; returns when it gives none any more."""
    deadline, asked = time.monotonic() + (GRACE if grace is None else grace), set()
    while processes := find():
        is_late = time.monotonic() > deadline
        for process in processes:
            if is_late or process.pid not in asked:
                asked.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
        time.sleep(0.05)
