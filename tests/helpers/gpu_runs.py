"""A test bed for GPU runs: a Prefect server, small projects, workers that all see GPU 0.

And functions that kill parts of it.
"""

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

from tests.helpers.clones import IDENTITY
from tests.helpers.prefect_server import ROOT, Server, run, tiny_project, wait_for

TRIALS = int(os.environ.get("THOUSANDWORDS_KILLS", "0"))  # 0: as many as the target asks for
FAST = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2", "PREFECT_WORKER_QUERY_SECONDS": "1"}
ENDS = ("COMPLETED", "CRASHED", "FAILED", "CANCELLED")
# the kernel says who uses a GPU: a separate lock, held by every process of the stage, and a line for each clash
PROBE = "exec 9>>{logs}/$CUDA_VISIBLE_DEVICES.probe; flock -n 9 || echo clash >>{logs}/clashes; echo $$ >>{logs}/begun; {work}"


def commit_first(project: Path) -> None:
    """Create the same first commit in each project, as in clones, so that the server accepts all of them."""
    when = {f"GIT_{role}_DATE": "2026-01-01T00:00:00Z" for role in ("AUTHOR", "COMMITTER")}
    command = ["git", "commit", "--quiet", "--allow-empty", "-m", "the first"]
    subprocess.run(command, cwd=project, env={**os.environ, **IDENTITY, **when}, check=True)


class GpuTestbed:
    """`work` is the command of the only stage of each project; `{logs}` in it is the folder of the logs."""

    def __init__(
        self, folder: Path, work: str = "sleep 600", projects: int = 1, schedules: tuple[dict, ...] = ()
    ) -> None:
        self.folder, self.logs = folder, folder / "logs"
        self.logs.mkdir(parents=True)
        self.server = Server(folder / "server", **FAST)
        names = [f"project{number}" for number in range(projects)]
        self.projects = [self._project(folder / name, work, schedules) for name in names]
        self.call("flows.deploy")
        for project in self.projects:
            self.start_workers(project)

    def _project(self, folder: Path, work: str, schedules: tuple[dict, ...]) -> Path:
        command = PROBE.format(logs=self.logs, work=work.replace("{logs}", str(self.logs)))
        stage = {"cmd": command, "always_changed": True}
        project = tiny_project(folder, {"train": stage}, {"stages": {"train": {"gpus": 1, "retries": 0}}})
        commit_first(project)
        whole = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        deployment = next(entry for entry in whole["deployments"] if entry["name"] == "pipeline")
        deployment = {**deployment, "schedules": list(schedules)}
        (project / "prefect.yaml").write_text(yaml.safe_dump({**whole, "deployments": [deployment]}))
        return project

    def settings(self) -> dict[str, str]:
        gpus = {"CUDA_VISIBLE_DEVICES": "0", "THOUSANDWORDS_GPU_LOCKS": str(self.folder / "gpu-locks")}
        return {**FAST, **gpus, "PREFECT_API_URL": self.server.api}

    def call(self, *args: str, project: Path | None = None) -> str:
        result = run(project or self.projects[0], *args, **self.settings())
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def start_workers(self, project: Path | None = None) -> None:
        self.call("flows.workers", "start", project=project)

    def close(self) -> None:
        for project in self.projects:
            run(project, "flows.workers", "stop", **self.settings())
        self.server.stop()

    def deployment(self) -> str:
        return f"deployments/{self.server.ask('deployments/filter')[0]['id']}"

    def create_run(self) -> str:
        return self.server.ask(f"{self.deployment()}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]

    def state(self, run_id: str) -> str:
        return self.server.run(run_id)["state_type"]

    def states(self, run_ids: list[str]) -> list[str]:
        runs = self.server.ask("flow_runs/filter", {"flow_runs": {"id": {"any_": run_ids}}})
        return [run_["state_type"] for run_ in runs]

    def history(self, run_id: str) -> list[str]:
        """Every state type that the run ever had, oldest first."""
        states = self.server.ask(f"flow_run_states/?flow_run_id={run_id}", method="GET")
        return [state["type"] for state in states]

    def wait_for_state(self, run_id: str, *states: str, seconds: float) -> None:
        wait_for(lambda: self.state(run_id) in states, seconds, f"the run is not {states}", every=0.3)

    def cancel(self, run_id: str) -> None:
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
        self.server.ask(f"flow_runs/{run_id}/set_state", body)

    def pause_schedule(self) -> None:
        """Stop scheduled runs; created ones still start.

        The scheduler reads the deployments in one transaction and writes their runs in another: runs that it wrote
        after the first pause (3 of 60 pauses) would hold the GPU. The second pause deletes them.
        """
        self.server.ask(f"{self.deployment()}/pause_deployment")
        time.sleep(10)
        self.server.ask(f"{self.deployment()}/pause_deployment")

    def count(self, what: str) -> int:
        """How many stages have "begun" so far, or found another stage on their GPU: "clashes"."""
        path = self.logs / what
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def wait_until_working(self, run_id: str, seconds: float = 180) -> None:
        self.wait_for_state(run_id, "RUNNING", seconds=seconds)
        wait_for(self.is_held, seconds, "no stage began", every=0.1)

    def is_held(self) -> bool:
        """Whether a process uses GPU 0, by the kernel's list of locks."""
        probe = self.logs / "0.probe"
        return probe.is_file() and f":{probe.stat().st_ino} " in Path("/proc/locks").read_text()

    def on_gpu(self) -> list[psutil.Process]:
        """The processes that have the probe file of GPU 0 open, by the kernel's list of open files."""
        probe, processes = str(self.logs / "0.probe"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(file.path == probe for file in process.open_files()):
                    processes.append(process)
        return processes

    def processes(self, *texts: str) -> list[psutil.Process]:
        """This test bed's processes with one of the texts in their command line."""
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line, home = " ".join(process.cmdline()), process.environ().get("PREFECT_HOME", "")
                if any(text in line for text in texts) and home.startswith(f"{self.folder}/"):
                    processes.append(process)
        return processes

    def flows(self) -> list[psutil.Process]:
        return self.processes("prefect.engine")

    def left(self) -> list[psutil.Process]:
        """All processes that belong to a run."""
        own = self.processes("_workspace_supervisor", "prefect.engine", "flows.workers.supervisor")
        return [*own, *self.on_gpu()]

    def machine(self) -> list[psutil.Process]:
        """All processes that die with a machine; supervisors and stages follow."""
        texts = ("prefect worker start", "flows.workers.heartbeat", "_workspace_supervisor", "prefect.engine")
        return self.processes(*texts)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Suspend the processes meanwhile."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def stop_server(testbed: GpuTestbed, seconds: float) -> None:
    testbed.server.stop(signal.SIGKILL)
    time.sleep(seconds)
    testbed.server.start()


def lock_database(testbed: GpuTestbed, seconds: float) -> None:
    """Block all other reads and writes, as a backup does."""
    database = sqlite3.connect(testbed.server.home / "prefect.db", timeout=30, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    time.sleep(seconds)
    database.execute("ROLLBACK")
    database.close()


def cancel_run(testbed: GpuTestbed, run_id: str) -> tuple[float, float]:
    """E7: seconds until its last process was gone, and until Prefect reported it as cancelled."""
    start = last = time.monotonic()
    testbed.cancel(run_id)
    while testbed.state(run_id) != "CANCELLED":
        assert time.monotonic() - start < 240
        last = time.monotonic() if testbed.left() else last
        time.sleep(0.3)
    assert testbed.left() == []
    return last - start, time.monotonic() - start
