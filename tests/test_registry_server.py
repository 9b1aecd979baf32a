"""The registry on a real MLflow server: the same commands, and an alias that outlives the server's sudden end (F2).

N kills: THOUSANDWORDS_KILLS.
"""
from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from flows import _versions, registry
from tests.registered import pictures, two_champions

pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` over a database and a folder of its own, on a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"

    def start(self) -> None:
        words = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--backend-store-uri",
                 f"sqlite:///{self.database}", "--artifacts-destination", (self.folder / "artifacts").as_uri()]  # fmt: skip
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("mlflow"), *words], cwd=self.folder, stdout=log, stderr=log,
                start_new_session=True, env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
            )  # fmt: skip
        until = time.monotonic() + 180
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """The sudden end of the server and its children: a group of their own, as one that died with its machine."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def is_gone(self) -> bool:
        """Whether nothing holds the port, some seconds after the kill: a worker of a busy machine takes its time to die."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) != 0:
                    return True
            time.sleep(0.05)
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    running = Server(tmp_path / "server")
    running.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield running
    if running.process.poll() is None:
        running.kill()


def test_on_a_server_the_commands_do_what_they_do_on_a_database(server, tmp_path):
    root = two_champions(tmp_path / "project")
    second = pictures(registry.fetch("champion", tmp_path / "a", root))
    began = time.monotonic()

    assert registry.rollback(root) == "1"

    print(f"F4: rollback on a server in {time.monotonic() - began:.2f} s")
    first = pictures(registry.fetch("champion", tmp_path / "a", root))
    assert first != second == pictures(root / "models/package")
    assert "@champion" in registry.show(root)[1] and "@challenger" in registry.show(root)[0]


def test_a_server_killed_while_the_alias_moves_leaves_the_old_or_the_new_value(server, tmp_path):
    two_champions(tmp_path / "project")
    count, moments, flips = int(os.environ.get("THOUSANDWORDS_KILLS", "20")), random.Random(0), 0
    for number in range(count):
        if number:
            server.start()
        told = [stored(server.database)]
        flipping = threading.Thread(target=flip_until_it_fails, args=(server.uri, told))
        flipping.start()
        while len(told) < 3 and flipping.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1))
        server.kill()
        flipping.join()

        *_, last, tried = told
        assert server.is_gone()
        assert stored(server.database) in (last, tried)
        flips += len(told) - 2
        assert len(told) >= 3, "it was killed before the first flip was answered"
    print(f"F2: the server killed {count} times, amid {flips} flips: each time the old or the new value, the database whole")


def flip_until_it_fails(uri: str, told: list[str]) -> None:
    """Moves the alias to and fro; `told` ends with the last move that was answered and the one that was not."""
    client = mlflow.MlflowClient(uri, uri)
    while True:
        told.append("1" if told[-1] == "2" else "2")
        try:
            _versions.move(client, "champion", told[-1])
        except MlflowException:
            return


def stored(database: Path) -> str:
    """The champion, by the database itself, which has to be whole."""
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        ((version,),) = connection.execute("SELECT version FROM registered_model_aliases WHERE alias = 'champion'")
    return str(version)
