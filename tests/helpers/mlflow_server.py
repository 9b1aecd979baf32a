"""A real MLflow server for tests: its own database, folder and port, and the team server's host checks."""

import importlib.metadata
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from configparser import RawConfigParser
from pathlib import Path

from flows.services import specs
from flows.services.commands import is_free
from tests.helpers.made_once import copy_of
from tests.helpers.prefect_server import free_port, wait_for

SECRETS = specs.Passwords("pg", "s3key", "mlpw", "mlsecret", "prpw")


def new_mlflow_database(path: Path) -> None:
    """An empty database with MLflow's tables; 50 migrations make them in three seconds."""
    copy_of(f"mlflow-{importlib.metadata.version('mlflow')}.db", make_mlflow_database, path)


def make_mlflow_database(path: Path) -> None:
    # a process of its own: MLflow writes where it records into the environment
    program = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", program, f"sqlite:///{path}"], check=True, capture_output=True)
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM experiments")  # the default one names this folder


class MlflowServer:
    """`mlflow server` with SQLite, without passwords, else with the options of flows/services/supervisord.conf.j2."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self.process: subprocess.Popen | None = None
        new_mlflow_database(self.database)

    def command(self) -> list[str]:
        read = RawConfigParser()
        settings = specs.ServicesConfig(self.folder, mlflow_port=self.port)
        read.read_string(specs.supervisor_file(settings, SECRETS))
        command = read["program:mlflow"]["command"].replace(" --app-name basic-auth", "")
        return [*shlex.split(command), "--backend-store-uri", f"sqlite:///{self.database}"]

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        own |= {"DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "a") as log:
            options = {"cwd": self.folder, "env": own, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(self.command(), **options, start_new_session=True)
        health = f"{self.uri}/health"
        wait_for(lambda: not self.is_alive() or answers(health), 180, "MLflow's server did not come up")
        assert self.is_alive(), (self.folder / "server.log").read_text()[-2000:]

    def kill(self) -> None:
        """Kill the server and its children, a process group of their own, as the end of a machine would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def is_gone(self) -> bool:
        """Whether the port is free some seconds after the kill; on a busy machine that takes time."""
        return wait_for(lambda: is_free(self.port), 10, "the port is not free")


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True
