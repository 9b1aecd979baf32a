"""What the tests of the flows share: a real Prefect server on a free port, tiny DVC projects, and their processes."""
from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def wait_for(what: Callable, seconds: float, told: str = "it did not come", every: float = 0.05):
    """The first true answer of `what`, asked `every` so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"{told} within {seconds} s"
        time.sleep(every)
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a person who works in the project, with a Prefect of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "THOUSANDWORDS_"))}
    own = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "THOUSANDWORDS_GPU_LOCKS": str(home / "gpu-locks"),
    }
    return {**kept, **own, **more}


def end(process: subprocess.Popen, number: int = signal.SIGTERM) -> None:
    """Ends a process and all below it."""
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in below:
            if one.is_running():
                one.kill()


class Server:
    """A Prefect server of its own; `api` is where it listens."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home, self.port, self.settings = home, free_port(), settings
        self.api = f"http://127.0.0.1:{self.port}/api"
        home.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        self.log = open(self.home / "server.log", "a")  # noqa: SIM115
        words = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port), "--no-ui"]
        self.process = subprocess.Popen(words, env=environment(self.home, **self.settings), stdout=self.log, stderr=self.log)
        wait_for(self.is_up, 120, "the server is not up")

    def is_up(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.api}/health", timeout=1).status == 200
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        end(self.process, number)
        self.log.close()

    def ask(self, path: str, body: dict | None = None, method: str = "POST"):
        data = None if method == "GET" else json.dumps(body or {}).encode()
        asked = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"}, method=method)
        for _ in range(30):
            try:
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except (TimeoutError, urllib.error.HTTPError) as error:
                if getattr(error, "code", 503) != 503:  # 503: its database is locked; clients ask again
                    raise
                time.sleep(1)
        raise TimeoutError(f"{self.api}/{path} does not answer")

    def runs(self, name: str | None = None) -> list[dict]:
        """The runs of a deployment, or of all, oldest first."""
        wanted = {"deployments": {"name": {"any_": [name]}}} if name else {}
        return self.ask("flow_runs/filter", {**wanted, "sort": "EXPECTED_START_TIME_ASC"})

    def run(self, run_id: str) -> dict:
        return self.ask(f"flow_runs/{run_id}", method="GET")

    def task_runs(self, run_id: str) -> dict[str, dict]:
        found = self.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return {one["name"]: one for one in found}

    def states(self, task_run: dict) -> list[dict]:
        return self.ask(f"task_run_states/?task_run_id={task_run['id']}", method="GET")

    def lines(self, run_id: str) -> list[str]:
        found = self.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"})
        return [one["message"] for one in found]


def tiny_project(folder: Path, stages: dict[str, dict], placement: dict | None = None) -> Path:
    """A DVC project of shell commands: tiny_project(folder, {"a": {"cmd": "echo 1 > a", "outs": ["a"]}})"""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / "flows").mkdir(exist_ok=True)
    (folder / "flows" / "placement.yaml").write_text(yaml.safe_dump(placement or {}))
    (folder / ".dvc").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def run(project: Path, *words: str, **settings: str) -> subprocess.CompletedProcess:
    """`python -m WORDS` in the project."""
    home = project / ".prefect"
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=project, env=environment(home, **settings), capture_output=True, text=True, timeout=300
    )
