"""A real Prefect server on a free port, tiny DVC projects, and processes for the tests of the flows."""

import contextlib
import http.server
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import yaml

from tests.helpers.made_once import copy_of
from tests.helpers.paths import ROOT

BIN = Path(sys.executable).parent


def wait_for(
    condition: Callable, seconds: float, message: str = "the condition is not true", every: float = 0.05
):
    """The first true result of `condition`, which is called `every` so many seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{message} within {seconds} s"
        time.sleep(every)
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a user of the project, with its own Prefect home."""
    others = ("PREFECT_", "THOUSANDWORDS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(others)}
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
    return {**inherited, **own, **extra}


@contextlib.contextmanager
def web_page() -> Iterator[str]:
    """The address of a server that answers each request with a page, which none of the project's servers is."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def end(process: subprocess.Popen, number: int = signal.SIGTERM) -> None:
    """End a process and all its descendants."""
    if process.poll() is None:
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for descendant in descendants:
            if descendant.is_running():
                descendant.kill()


def processes_in(folder: Path, without: str = "-") -> list[psutil.Process]:
    """The processes whose working directory is this folder, but those with such an argument."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_here = process.cwd() == str(folder.resolve()) and without not in process.cmdline()
            if is_here and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def make_database(path: Path) -> None:
    """Prefect's tables; they take as long as all else that a server does at its start."""
    command = [BIN / "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env=environment(path.parent), check=True, capture_output=True)
    (path.parent / "prefect.db").rename(path)


class Server:
    """A Prefect server of its own; `api` is its address."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home, self.port, self.settings = home, free_port(), settings
        self.api = f"http://127.0.0.1:{self.port}/api"
        home.mkdir(parents=True, exist_ok=True)
        if "PREFECT_API_DATABASE_CONNECTION_URL" not in settings:
            name = f"prefect-{importlib.metadata.version('prefect')}.db"
            copy_of(name, make_database, home / "prefect.db")
        self.start()

    def start(self) -> None:
        self.log = open(self.home / "server.log", "a")  # noqa: SIM115
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--no-ui"]
        own, command = environment(self.home, **self.settings), [BIN / "prefect", "server", "start", *options]
        self.process = subprocess.Popen(command, env=own, stdout=self.log, stderr=self.log)
        wait_for(self.is_up, 300, "the server is not up")

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
        request = urllib.request.Request(
            f"{self.api}/{path}", data, {"Content-Type": "application/json"}, method=method
        )
        for _ in range(30):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except (TimeoutError, urllib.error.HTTPError) as error:
                if getattr(error, "code", 503) != 503:  # 503: its database is locked; clients ask again
                    raise
                time.sleep(1)
        raise TimeoutError(f"{self.api}/{path} does not answer")

    def runs(self, name: str | None = None) -> list[dict]:
        """The runs of a deployment, or of all, oldest first."""
        query = {"deployments": {"name": {"any_": [name]}}} if name else {}
        return self.ask("flow_runs/filter", {**query, "sort": "EXPECTED_START_TIME_ASC"})

    def run(self, run_id: str) -> dict:
        return self.ask(f"flow_runs/{run_id}", method="GET")

    def task_runs(self, run_id: str) -> dict[str, dict]:
        task_runs = self.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return {task_run["name"]: task_run for task_run in task_runs}

    def states(self, task_run: dict) -> list[dict]:
        return self.ask(f"task_run_states/?task_run_id={task_run['id']}", method="GET")

    def lines(self, run_id: str) -> list[str]:
        query = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.ask("logs/filter", query)]


def tiny_project(folder: Path, stages: dict[str, dict], placement: dict | None = None) -> Path:
    """A DVC project of shell commands: tiny_project(folder, {"a": {"cmd": "echo 1 > a", "outs": ["a"]}})"""
    (folder / "flows/workers").mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / "flows/workers/placement.yaml").write_text(yaml.safe_dump(placement or {}))
    (folder / ".dvc").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def run(project: Path, *args: str, **settings: str) -> subprocess.CompletedProcess:
    """`python -m ARGS` in the project."""
    home = project / ".prefect"
    command = [sys.executable, "-m", *args]
    return subprocess.run(
        command, cwd=project, env=environment(home, **settings), capture_output=True, text=True, timeout=300
    )
