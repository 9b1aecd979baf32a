"""python -m flows.workers.workers start | stop | list: one worker per GPU, and one for the CPU.

The heartbeat process (flows/workers/heartbeat.py) runs beside them. Each has its own session, a file with its
process number in .prefect/workers/, and its log beside that file.
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

from flows.deploy import CPU_POOL, GPU_POOL, prepare_server
from flows.workers import gpu_lock
from thousandwords.core.errors import UserError

FOLDER = Path(".prefect/workers")
HEARTBEAT_FILE = FOLDER / "watch.json"
CPU_RUNS = 2  # at once, of a worker without a GPU; a worker with GPUs takes one run at a time
PATIENCE = 45.0  # seconds: a worker gives its runs 30 to end
IDLE_PATIENCE = 10.0  # for a worker without a run: Prefect 3.8's hang for ever once their server was down


@dataclass(frozen=True)
class Worker:
    """One worker: its name, the pool it takes runs from, and the GPUs that only it sees."""

    name: str
    pool: str
    gpus: tuple[str, ...]
    runs: int  # at once

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.json"


def plan_workers(
    gpus: list[str], per_worker: int = 1, name: str | None = None, cpu_runs: int = CPU_RUNS
) -> list[Worker]:
    """The workers of a machine: plan_workers(["0", "1"]) -> one for GPU 0, one for GPU 1, one for the CPU."""
    name = name or socket.gethostname().partition(".")[0]
    if per_worker < 1 or (gpus and len(gpus) % per_worker):
        raise UserError(
            f"{len(gpus)} GPUs cannot be divided into groups of {per_worker}. Give another --gpus-per-worker"
        )
    if cpu_runs < 1:
        raise UserError(f"a worker cannot take {cpu_runs} runs at once. Give --runs 1 or more")
    groups = [tuple(gpus[first : first + per_worker]) for first in range(0, len(gpus), per_worker)]
    workers = [Worker(f"{name}-gpu{'-'.join(group)}", GPU_POOL, group, 1) for group in groups]
    return [*workers, Worker(f"{name}-cpu", CPU_POOL, (), cpu_runs)]


def start(workers: list[Worker]) -> list[str]:
    """Start the workers that do not run yet; a line for each."""
    prepare_server()
    FOLDER.mkdir(parents=True, exist_ok=True)
    return [
        *(_start(worker) for worker in workers),
        _launch(HEARTBEAT_FILE, ["flows.workers.heartbeat"], (), "marks dead runs"),
    ]


def _start(worker: Worker) -> str:
    options = ["--pool", worker.pool, "--name", worker.name, "--type", "process", "--limit", str(worker.runs)]
    return _launch(
        worker.file, ["prefect", "worker", "start", *options], worker.gpus, f"takes runs from {worker.pool}"
    )


def _launch(file: Path, command: list[str], gpus: tuple[str, ...], task: str) -> str:
    """Start `python -m COMMAND`, unless the process that `file` names still runs."""
    if process := find_process(file):
        return f"{file.stem} runs already (process {process.pid})"
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "THOUSANDWORDS_ROOT": str(Path.cwd()),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))),
    }
    with open(file.with_suffix(".log"), "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives this command and its terminal; a stage never gets one
        )
    born = psutil.Process(process.pid).create_time()
    file.write_text(json.dumps({"pid": process.pid, "born": born, "gpus": gpus}))
    return f"{file.stem} {task} (process {process.pid}, log {file.with_suffix('.log')})"


def find_process(file: Path) -> psutil.Process | None:
    """The process that a file names, if it is still the same one: process numbers are reused."""
    with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
        record = json.loads(file.read_text())
        process = psutil.Process(record["pid"])
        if abs(process.create_time() - record["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def stop() -> list[str]:
    """End all workers of this folder and their runs, checkpoints first; a line for each."""
    processes = {file: find_process(file) for file in sorted(FOLDER.glob("*.json"))}
    for process in filter(None, processes.values()):
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()  # one wait for all of them
    return [_end(file, process, began) for file, process in processes.items()]


def _end(file: Path, process: psutil.Process | None, began: float) -> str:
    result = "had ended already"
    if process:
        result = "ended" if _wait(process, began) else "was killed"
    file.unlink(missing_ok=True)
    return f"{file.stem} {result}"


def _wait(process: psutil.Process, began: float) -> bool:
    while is_running(process):
        if time.monotonic() - began > (PATIENCE if has_runs(process) else IDLE_PATIENCE):
            process.kill()  # its runs end with it (flows/workers/parent_watch.py)
            return False
        time.sleep(0.1)
    return True


def has_runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.children())
    return False


def is_running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def list_workers() -> list[str]:
    """A line for each worker of this folder."""
    return [
        f"{file.stem}: {f'process {process.pid}' if (process := find_process(file)) else 'ended without being stopped'}"
        for file in sorted(FOLDER.glob("*.json"))
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["start", "stop", "list"])
    parser.add_argument(
        "--gpus-per-worker", type=int, default=1, help="for stages that train on several (default: 1)"
    )
    parser.add_argument(
        "--runs", type=int, default=CPU_RUNS, help="at once, without a GPU (default: 2; in a fleet: 1)"
    )
    parser.add_argument(
        "--name", help="prefix of the names, if another clone has workers here (default: the host's name)"
    )
    options = parser.parse_args(argv)
    try:
        lines = {
            "start": lambda: start(
                plan_workers(gpu_lock.visible(), options.gpus_per_worker, options.name, options.runs)
            ),
            "stop": stop,
            "list": list_workers,
        }[options.what]()
    except UserError as error:
        print(f"workers: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print("\n".join(lines or ["no worker runs in this folder"]))


if __name__ == "__main__":
    main()
