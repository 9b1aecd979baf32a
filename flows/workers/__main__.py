"""python -m flows.workers start | stop: one worker per GPU, and one for the CPU.

The heartbeat process (flows/workers/heartbeat.py) runs beside them. Each has its own session, and in .prefect/workers/
a lock with its process number, and its log.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from prefect.client.orchestration import get_client

from flows.command_line import one_sentence, parser
from flows.deploy import CPU_POOL, GPU_POOL, prepare_server
from flows.workers import gpu_lock
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable
from thousandwords.core.locks import holder, take_lock, write_note

FOLDER = Path(".prefect/workers")
CPU_RUNS = 2  # at once, of a worker without a GPU; a worker with GPUs takes one run at a time
PATIENCE = 45.0  # seconds: a worker gives its runs 30 to end
ONLINE_WITHIN = 120.0  # seconds; it takes five on a quiet machine
IDLE_PATIENCE = 10.0  # for a worker without a run: Prefect 3.8's hang for ever once their server was down


@dataclass(frozen=True)
class Worker:
    """One worker: its name, the pool it takes runs from, and the GPUs that only it sees."""

    name: str
    pool: str
    gpus: tuple[str, ...]
    runs: int  # at once


def plan_workers(
    gpus: list[str], per_worker: int = 1, name: str | None = None, cpu_runs: int = CPU_RUNS
) -> list[Worker]:
    """The workers of a machine: plan_workers(["0", "1"]) -> one for GPU 0, one for GPU 1, one for the CPU."""
    name = name or socket.gethostname().partition(".")[0]
    if per_worker < 1 or (gpus and len(gpus) % per_worker):
        found = f"{len(gpus)} GPUs cannot be divided into groups of {per_worker}"
        raise UserError(f"{found}. Give another --gpus-per-worker")
    if cpu_runs < 1:
        raise UserError(f"a worker cannot take {cpu_runs} runs at once. Give --runs 1 or more")
    groups = [tuple(gpus[first : first + per_worker]) for first in range(0, len(gpus), per_worker)]
    workers = [Worker(f"{name}-gpu{'-'.join(group)}", GPU_POOL, group, 1) for group in groups]
    return [*workers, Worker(f"{name}-cpu", CPU_POOL, (), cpu_runs)]


def start(workers: list[Worker]) -> list[str]:
    """Start the workers that do not run yet; a line for each, once the server knows them: a fleet may start next."""
    check_writable()
    prepare_server()
    lines = []
    for each in workers:
        command = f"prefect worker start --pool {each.pool} --type process --limit {each.runs} --name".split()
        lines.append(_launch(each.name, [*command, each.name], each.gpus, f"takes runs from {each.pool}"))
    lines.append(_launch("watch", ["flows.workers.heartbeat"], (), "marks dead runs"))
    deadline, waiting = time.monotonic() + ONLINE_WITHIN, list(workers)
    with get_client(sync_client=True) as client:
        while waiting:
            name, log = waiting[0].name, FOLDER / f"{waiting[0].name}.log"
            known = client.read_workers_for_work_pool(waiting[0].pool)
            if name in [each.name for each in known if each.status == "ONLINE"]:
                del waiting[0]
            elif holder(log.with_suffix(".lock")) is None:
                raise UserError(f"worker {name} has ended by itself. Its log says why: {log}")
            elif time.monotonic() > deadline:
                raise UserError(f"worker {name} has not reached the server yet. See its log: {log}")
            else:
                time.sleep(0.2)
    return lines


def _launch(name: str, command: list[str], gpus: tuple[str, ...], task: str) -> str:
    """Start `python -m COMMAND`, unless the process that holds its lock still runs."""
    path, root = FOLDER / f"{name}.lock", str(Path.cwd())
    lock = take_lock(path)
    if not lock:
        return f"{name} runs already (process {(holder(path) or {}).get('pid')})"
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "THOUSANDWORDS_ROOT": root,
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
    }
    with lock, open(path.with_suffix(".log"), "a") as log:
        # it outlives this command and its terminal, and holds the lock as long as it lives
        options = {"env": environment, "start_new_session": True, "pass_fds": [lock.fileno()]}
        files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen([sys.executable, "-m", *command], **options, **files)
        write_note(lock, pid=process.pid)
    return f"{name} {task} (process {process.pid}, log {path.with_suffix('.log')})"


def find_processes() -> dict[Path, psutil.Process | None]:
    """{lock: the process that holds it, None if that has ended} of this folder's workers."""
    processes: dict[Path, psutil.Process | None] = {}
    for path in sorted(FOLDER.glob("*.lock")):
        processes[path] = None
        with contextlib.suppress(psutil.Error, TypeError):
            processes[path] = psutil.Process(holder(path)["pid"])
    return processes


def stop() -> list[str]:
    """End all workers of this folder and their runs, checkpoints first; a line for each."""
    processes, lines = find_processes(), []
    for process in filter(None, processes.values()):
        process.terminate()
    began = time.monotonic()  # one wait for all of them
    for path, process in processes.items():
        result = "ended" if process else "had ended already"
        while process and holder(path) is not None:
            has_runs = False
            with contextlib.suppress(psutil.Error):
                has_runs = bool(process.children())
            if time.monotonic() - began > (PATIENCE if has_runs else IDLE_PATIENCE):
                process.kill()  # its runs end with it (flows/workers/run_lock.py)
                result = "was killed" if has_runs else result
                break
            time.sleep(0.1)
        path.unlink(missing_ok=True)
        lines.append(f"{path.stem} {result}")
    return lines


def list_workers() -> list[str]:
    found = {path.stem: process and f"process {process.pid}" for path, process in find_processes().items()}
    return [f"{name}: {process or 'ended without being stopped'}" for name, process in found.items()]


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    add = arguments.add_argument
    add("what", choices=["start", "stop"])
    add("--gpus-per-worker", type=int, default=1, help="for stages that train on several (default: 1)")
    add("--runs", type=int, default=CPU_RUNS, help="at once, without a GPU (default: 2; in a fleet: 1)")
    add("--name", help="prefix of the names, if another clone has workers here (default: the host's name)")
    options = arguments.parse_args(argv)
    with one_sentence("workers"):
        if options.what == "start":
            gpus = gpu_lock.visible()
            lines = start(plan_workers(gpus, options.gpus_per_worker, options.name, options.runs))
        else:
            lines = stop()
        print("\n".join(lines or ["no worker runs in this folder"]))


if __name__ == "__main__":
    main()
