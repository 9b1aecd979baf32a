"""A real MLflow server for tests: a database and a folder of its own, a free port, the doors of the team's server."""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

from flows import services
from tests.orchestra import free_port, wait_for

SECRETS = services.Passwords("pg", "s3key", "mlpw", "mlsecret", "prpw")


class MlflowServer:
    """`mlflow server` with SQLite and without passwords, else with the words that flows/services.py gives the team's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self.process: subprocess.Popen | None = None
        folder.mkdir(parents=True)

    def command(self) -> list[str]:
        words = services._mlflow(services.Settings(self.folder, mlflow_port=self.port), SECRETS).command
        changed = {"--workers": "1", "--artifacts-destination": (self.folder / "artifacts").as_uri()}
        words = [changed.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        passwords = words.index("--app-name")
        return [*words[:passwords], *words[passwords + 2 :], "--backend-store-uri", f"sqlite:///{self.database}"]

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        given = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env={**given, "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        wait_for(lambda: not self.is_alive() or answers(f"{self.uri}/health"), 180, "MLflow's server did not come up")
        assert self.is_alive(), (self.folder / "server.log").read_text()[-2000:]

    def kill(self) -> None:
        """The sudden end of the server and its children: a group of their own, as one that died with its machine."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def is_gone(self) -> bool:
        """Whether nothing holds the port, some seconds after the kill: a worker of a busy machine takes its time to die."""
        wait_for(lambda: not self.is_open(), 10, "something still holds the port")
        return True

    def is_open(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True
