"""A crew for the tests of the flows: a Prefect server, small projects, workers that all see the GPU called 0. And its deaths."""
from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from tests.orchestra import ROOT, Server, run, tiny_project, wait_for

TRIALS = int(os.environ.get("THOUSANDWORDS_KILLS", "0"))  # 0: as many as the bar asks for
FAST = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2", "PREFECT_WORKER_QUERY_SECONDS": "1"}
ENDS = ("COMPLETED", "CRASHED", "FAILED", "CANCELLED")
# the kernel's word on who is on a GPU: a lock of its own, held by all that the stage starts, and a line for each clash
PROBE = "exec 9>>{logs}/$CUDA_VISIBLE_DEVICES.probe; flock -n 9 || echo clash >>{logs}/clashes; echo $$ >>{logs}/begun; {work}"


def begin_history(project: Path) -> None:
    """The same first commit in each, as clones of one project have: the server is theirs all."""
    who = {f"GIT_{role}_{what}": "crew" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": "2026-01-01T00:00:00Z" for role in ("AUTHOR", "COMMITTER")}
    words = ["git", "commit", "--quiet", "--allow-empty", "-m", "the first"]
    subprocess.run(words, cwd=project, env={**os.environ, **who, **when}, check=True)


class Crew:
    """`work` is what the only stage of each project does; `{logs}` in it is a folder of this crew."""

    def __init__(self, folder: Path, work: str = "sleep 600", projects: int = 1, schedules: tuple[dict, ...] = (),
                 server: dict[str, str] | None = None, workers: dict[str, str] | None = None) -> None:  # fmt: skip
        self.folder, self.logs, self.more = folder, folder / "logs", workers or {}
        self.logs.mkdir(parents=True)
        self.server = Server(folder / "server", **FAST, **(server or {}))
        self.projects = [self._project(folder / f"project{number}", work, schedules) for number in range(projects)]
        self.call("flows.bootstrap")
        for project in self.projects:
            self.start_workers(project)

    def _project(self, folder: Path, work: str, schedules: tuple[dict, ...]) -> Path:
        command = PROBE.format(logs=self.logs, work=work.replace("{logs}", str(self.logs)))
        stage = {"cmd": command, "always_changed": True}
        project = tiny_project(folder, {"train": stage}, {"stages": {"train": {"gpus": 1, "retries": 0}}})
        begin_history(project)
        whole = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        one = {**next(one for one in whole["deployments"] if one["name"] == "pipeline"), "schedules": list(schedules)}
        (project / "prefect.yaml").write_text(yaml.safe_dump({**whole, "deployments": [one]}))
        return project

    def settings(self) -> dict[str, str]:
        gpus = {"CUDA_VISIBLE_DEVICES": "0", "THOUSANDWORDS_GPU_LOCKS": str(self.folder / "gpu-locks")}
        return {**FAST, **gpus, "PREFECT_API_URL": self.server.api}

    def call(self, *words: str, project: Path | None = None, **more: str) -> str:
        done = run(project or self.projects[0], *words, **self.settings(), **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_workers(self, project: Path | None = None) -> None:
        self.call("flows.workers", "start", project=project, **self.more)

    def close(self) -> None:
        for project in self.projects:
            run(project, "flows.workers", "stop", **self.settings())
        self.server.stop()

    # --- runs

    def ask_for_a_run(self) -> str:
        found = self.server.ask("deployments/filter")[0]
        return self.server.ask(f"deployments/{found['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]

    def state(self, run_id: str) -> str:
        return self.server.run(run_id)["state_type"]

    def states(self, run_ids: list[str]) -> list[str]:
        found = self.server.ask("flow_runs/filter", {"flow_runs": {"id": {"any_": run_ids}}})
        return [one["state_type"] for one in found]

    def history(self, run_id: str) -> list[str]:
        """Every kind of state that it was ever in, oldest first."""
        return [one["type"] for one in self.server.ask(f"flow_run_states/?flow_run_id={run_id}", method="GET")]

    def wait_for_state(self, run_id: str, *states: str, seconds: float) -> float:
        start = time.monotonic()
        wait_for(lambda: self.state(run_id) in states, seconds, f"{states}, it is {self.state(run_id)}", every=0.3)
        return time.monotonic() - start

    def cancel(self, run_id: str) -> None:
        wanted = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
        self.server.ask(f"flow_runs/{run_id}/set_state", wanted)

    def pause_schedule(self) -> None:
        """No run comes any more but those that are asked for."""
        self.server.ask(f"deployments/{self.server.ask('deployments/filter')[0]['id']}/pause_deployment")

    def begun(self) -> int:
        """How many stages have begun so far."""
        return lines(self.logs / "begun")

    def clashes(self) -> int:
        """How many of them found another on their GPU."""
        return lines(self.logs / "clashes")

    def at_work(self, run_id: str, seconds: float = 180) -> None:
        self.wait_for_state(run_id, "RUNNING", seconds=seconds)
        wait_for(self.is_held, seconds, "no stage began", every=0.1)

    # --- processes

    def is_held(self) -> bool:
        """Whether anybody is on GPU 0, by the kernel's list of locks."""
        probe = self.logs / "0.probe"
        return probe.is_file() and f":{probe.stat().st_ino} " in Path("/proc/locks").read_text()

    def on_gpu(self) -> list[psutil.Process]:
        """What holds the probe's lock of GPU 0 open, by the kernel's list of open files."""
        probe, found = str(self.logs / "0.probe"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(one.path == probe for one in process.open_files()):
                    found.append(process)
        return found

    def processes(self, *words: str) -> list[psutil.Process]:
        """This crew's processes with one of the words in their command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if any(word in line for word in words) and self.owns(process):
                    found.append(process)
        return found

    def owns(self, process: psutil.Process) -> bool:
        return process.environ().get("PREFECT_HOME", "").startswith(f"{self.folder}/")

    def flows(self) -> list[psutil.Process]:
        return self.processes("prefect.engine")

    def workers(self) -> list[psutil.Process]:
        return self.processes("prefect worker start")

    def left(self) -> list[psutil.Process]:
        """All that belongs to a run."""
        return [*self.processes("_workspace_supervisor", "prefect.engine", "flows.keeper"), *self.on_gpu()]

    def machine(self) -> list[psutil.Process]:
        """All that dies with a machine of this crew; its keepers and stages follow."""
        return self.processes("prefect worker start", "flows.watch", "_workspace_supervisor", "prefect.engine")


def saw(line: str) -> None:
    print(line, flush=True)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """None of them gets any time."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def server_is_away(crew: Crew, seconds: float) -> None:
    crew.server.stop(signal.SIGKILL)
    time.sleep(seconds)
    crew.server.start()


def database_is_locked(crew: Crew, seconds: float) -> None:
    """Nobody else writes or reads, as when a backup holds it."""
    database = sqlite3.connect(crew.server.home / "prefect.db", timeout=30, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    time.sleep(seconds)
    database.execute("ROLLBACK")
    database.close()


# --- trials: what is done and seen, in seconds --------------------------------------------------------------------------


def flow_is_killed(crew: Crew) -> tuple[float, float]:
    """E1, the worker lives and sees it: when the run had ended, when its GPU was free."""
    one = crew.ask_for_a_run()
    crew.at_work(one)
    start = time.monotonic()
    kill(crew.flows())
    crew.wait_for_state(one, "CRASHED", "FAILED", seconds=10)
    told = time.monotonic() - start
    wait_for(lambda: not crew.is_held(), 10 - told, "the GPU is not free")
    return told, time.monotonic() - start


def worker_is_killed(crew: Crew, is_early: bool = False) -> float:
    """E3, the flow would train on, while a new worker starts another: when nothing of it was left. Early: before it began."""
    one = crew.ask_for_a_run()
    if is_early:
        wait_for(lambda: crew.processes("_workspace_supervisor"), 60)
    else:
        crew.at_work(one)
    start = time.monotonic()
    kill(crew.workers())
    wait_for(lambda: not crew.is_held() and not crew.left(), 60, "the flow lives on", every=0.3)
    left = time.monotonic() - start
    crew.wait_for_state(one, "CRASHED", "FAILED", "CANCELLED", seconds=130)
    crew.start_workers()
    return left


def run_is_cancelled(crew: Crew, run_id: str) -> tuple[float, float]:
    """E7: when its last process was seen, and when Prefect said that it is cancelled, which is never before."""
    start = last = time.monotonic()
    crew.cancel(run_id)
    while crew.state(run_id) != "CANCELLED":
        assert time.monotonic() - start < 240
        last = time.monotonic() if crew.left() else last
        time.sleep(0.3)
    assert crew.left() == []
    return last - start, time.monotonic() - start
