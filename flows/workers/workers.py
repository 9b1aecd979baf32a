"""python -m flows.workers start | stop | list: one worker per GPU, which sees that GPU alone, and one for what needs none.

Beside them runs the watch over dead runs (flows/watch.py). Each is in a session of its own and is known by a file with its
process number in .prefect/workers/, its log beside it.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows import gpu
from flows.bootstrap import CPU_POOL, GPU_POOL, enter
from thousandwords.errors import UserError

FOLDER = Path(".prefect/workers")
WATCH = FOLDER / "watch.json"
CPU_RUNS = 2  # at once, of a worker without a GPU; one with GPUs takes one run at a time
PATIENCE = 45.0  # seconds: a worker gives its runs 30 to end
IDLE_PATIENCE = 10.0  # for one without a run: Prefect 3.8's hang for ever once their server was away


@dataclass(frozen=True)
class Worker:
    """One worker: its name, the pool it takes runs from, and the GPUs that it alone sees."""

    name: str
    pool: str
    gpus: tuple[str, ...]
    runs: int  # at once

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.json"


def planned(gpus: list[str], per_worker: int = 1, name: str | None = None, cpu_runs: int = CPU_RUNS) -> list[Worker]:
    """The workers of a machine: planned(["0", "1"]) -> one for GPU 0, one for GPU 1, one for the CPU."""
    name = name or socket.gethostname().partition(".")[0]
    if per_worker < 1 or (gpus and len(gpus) % per_worker):
        raise UserError(f"{len(gpus)} GPUs cannot be shared out by {per_worker}. Give another --gpus-per-worker")
    if cpu_runs < 1:
        raise UserError(f"a worker cannot take {cpu_runs} runs at once. Give --runs 1 or more")
    shares = [tuple(gpus[first : first + per_worker]) for first in range(0, len(gpus), per_worker)]
    workers = [Worker(f"{name}-gpu{'-'.join(share)}", GPU_POOL, share, 1) for share in shares]
    return [*workers, Worker(f"{name}-cpu", CPU_POOL, (), cpu_runs)]


def start(workers: list[Worker]) -> list[str]:
    """Starts those that do not run; a line for each."""
    enter()
    FOLDER.mkdir(parents=True, exist_ok=True)
    return [*(_start(worker) for worker in workers), _launch(WATCH, ["flows.watch"], (), "watches over dead runs")]


def _start(worker: Worker) -> str:
    named = ["--pool", worker.pool, "--name", worker.name, "--type", "process", "--limit", str(worker.runs)]
    return _launch(worker.file, ["prefect", "worker", "start", *named], worker.gpus, f"takes runs from {worker.pool}")


def _launch(file: Path, words: list[str], gpus: tuple[str, ...], does: str) -> str:
    """Starts `python -m WORDS`, unless the process that `file` names lives."""
    if process := living(file):
        return f"{file.stem} runs already (process {process.pid})"
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "THOUSANDWORDS_ROOT": str(Path.cwd()),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))),
    }
    with open(file.with_suffix(".log"), "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives this command and its terminal; a stage never gets one
        )
    born = psutil.Process(process.pid).create_time()
    file.write_text(json.dumps({"pid": process.pid, "born": born, "gpus": gpus}))
    return f"{file.stem} {does} (process {process.pid}, log {file.with_suffix('.log')})"


def living(file: Path) -> psutil.Process | None:
    """The process that a file names, if it is still that one: numbers are given again."""
    with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
        known = json.loads(file.read_text())
        process = psutil.Process(known["pid"])
        if abs(process.create_time() - known["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def stop() -> list[str]:
    """Ends all workers of this folder and what they run, checkpoints first; a line for each."""
    found = {file: living(file) for file in sorted(FOLDER.glob("*.json"))}
    for process in filter(None, found.values()):
        process.send_signal(signal.SIGTERM)
    asked = time.monotonic()  # one wait for all of them
    return [_end(file, process, asked) for file, process in found.items()]


def _end(file: Path, process: psutil.Process | None, asked: float) -> str:
    how = "had ended already"
    if process:
        how = "ended" if _wait(process, asked) else "was killed"
    file.unlink(missing_ok=True)
    return f"{file.stem} {how}"


def _wait(process: psutil.Process, asked: float) -> bool:
    while living_still(process):
        if time.monotonic() - asked > (PATIENCE if has_runs(process) else IDLE_PATIENCE):
            process.kill()  # its runs end with it (flows/_lifeline.py)
            return False
        time.sleep(0.1)
    return True


def has_runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.children())
    return False


def living_still(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def listed() -> list[str]:
    """A line for each worker of this folder."""
    return [
        f"{file.stem}: {f'process {process.pid}' if (process := living(file)) else 'ended, though nobody stopped it'}"
        for file in sorted(FOLDER.glob("*.json"))
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "stop", "list"])
    parser.add_argument("--gpus-per-worker", type=int, default=1, help="for stages that train on several (default: 1)")
    parser.add_argument("--runs", type=int, default=CPU_RUNS, help="at once, without a GPU (default: 2; in a fleet: 1)")
    parser.add_argument("--name", help="what the names begin with, if another clone has workers here (default: the host's)")
    options = parser.parse_args(argv)
    try:
        lines = {
            "start": lambda: start(planned(gpu.visible(), options.gpus_per_worker, options.name, options.runs)),
            "stop": stop,
            "list": listed,
        }[options.what]()
    except UserError as error:
        print(f"workers: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print("\n".join(lines or ["no worker runs in this folder"]))


if __name__ == "__main__":
    main()
