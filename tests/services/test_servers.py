"""Processes of servers: how they are started, found and ended. The real servers: test_team.py.

Settings: tests/unit/flows.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.services import postgres_server, processes, specs
from flows.services.commands import NAMES, check_ports, start, wait_until_up
from flows.services.specs import Server, ServicesConfig
from tests.helpers.paths import ROOT
from thousandwords.core.errors import UserError


def test_a_taken_port_is_named_with_the_setting_that_changes_it():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = (
            f"port {port} of 127.0.0.1 is taken, but mlflow needs it. "
            "Set SERVERS_MLFLOW_PORT to another, or stop the program that uses it"
        )
        with pytest.raises(UserError, match=re.escape(message)):
            check_ports(free_settings(Path("."), mlflow_port=port))


PRINT_VARIABLES = (
    "import flows, os; print(*(os.environ.get(name) for name in ('PREFECT_API_URL', 'MLFLOW_TRACKING_URI')))"
)


@pytest.mark.parametrize("is_up", [True, False])
def test_flows_use_the_running_servers_of_their_folder_unless_the_environment_names_others(tmp_path, is_up):
    settings = free_settings(tmp_path / ".servers")
    settings.folder.mkdir()
    specs.ensure_passwords(settings.folder)
    me = psutil.Process()
    record = {"pid": me.pid, "born": me.create_time() - (0 if is_up else 100)}
    for name in ("prefect", "mlflow"):
        (settings.folder / f"{name}.pid").write_text(json.dumps(record))
    bare = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MLFLOW_", "SERVERS_"))
    }
    own = {**bare, "PYTHONPATH": str(ROOT), "SERVERS_PREFECT_PORT": "4321", "SERVERS_MLFLOW_PORT": "5432"}
    elsewhere = {**own, "PREFECT_API_URL": "http://elsewhere/api"}

    command = [sys.executable, "-c", PRINT_VARIABLES]
    addresses = [
        subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).split()
        for environment in (own, elsewhere)
    ]

    expected = ["http://127.0.0.1:4321/api", "http://127.0.0.1:5432"] if is_up else ["None", "None"]
    assert addresses == [expected, ["http://elsewhere/api", "None"]]


FAMILY = """
import subprocess, sys, time
if len(sys.argv) == 1:
    for own_session in (False, True):
        subprocess.Popen([sys.executable, __file__, "child"], start_new_session=own_session)
print("here", flush=True)
time.sleep(60)
"""


def launch_family(folder: Path) -> subprocess.Popen:
    """A server with two children, one of them in another session."""
    (folder / "family").mkdir()
    script = folder / "family.py"
    script.write_text(FAMILY)
    process = processes.launch("family", [sys.executable, str(script)], folder, dict(os.environ))
    wait_for(lambda: processes.last_lines(folder, "family").count("here") == 3)
    return process


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("is_leader_killed", [False, True])
def test_end_server_leaves_no_process_even_if_the_leader_was_killed(tmp_path, is_leader_killed):
    process = launch_family(tmp_path)
    if is_leader_killed:
        process.kill()
        process.wait()
        assert processes.leader(tmp_path, "family") is None
    assert processes.end_server(tmp_path, "family", patience=2) == (2 if is_leader_killed else 3)
    assert processes.server_processes(tmp_path, "family") == [] and not (tmp_path / "family.pid").exists()


def test_a_process_that_only_has_the_number_of_a_server_is_left_alone(tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = psutil.Process(stranger.pid).create_time()
    (tmp_path / "mlflow.pid").write_text(json.dumps({"pid": stranger.pid, "born": born - 100}))
    assert processes.end_server(tmp_path, "mlflow") == 0 and stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_server_that_ends_is_named_with_its_last_lines(tmp_path):
    (tmp_path / "mlflow").mkdir()
    command = [sys.executable, "-c", "print('no such database'); raise SystemExit(3)"]
    process = processes.launch("mlflow", command, tmp_path, dict(os.environ))
    server = Server("mlflow", command, {}, lambda: False)
    with pytest.raises(
        UserError, match=r"mlflow ended with code 3; the others were stopped(.|\n)*\n  no such database"
    ):
        wait_until_up(server, process, tmp_path, 20)


def test_if_one_server_fails_none_is_left_running(tmp_path, monkeypatch):
    (tmp_path / "postgres").mkdir()
    commands = {"postgres": "import time; time.sleep(60)", "mlflow": "raise SystemExit('bad luck')"}
    fakes = [
        Server(name, [sys.executable, "-c", code], dict(os.environ), lambda name=name: name == "postgres")
        for name, code in commands.items()
    ]
    monkeypatch.setattr(specs, "servers", lambda *_: fakes)
    monkeypatch.setattr(specs, "missing_requirements", list)
    for name in ("make_folder", "make_databases"):
        monkeypatch.setattr(postgres_server, name, lambda *_: None)
    with pytest.raises(UserError, match="bad luck"):
        start(free_settings(tmp_path))
    assert [process for name in NAMES for process in processes.server_processes(tmp_path, name)] == []


def free_settings(folder: Path, **more: int) -> ServicesConfig:
    """Settings with free ports: one block of seven, so that the store's four are in a row."""
    for first in range(20000 + os.getpid() % 1000 * 10, 60000, 10):
        if all(processes.is_free(port) for port in range(first, first + 7)):
            names = {"postgres_port": first + 4, "mlflow_port": first + 5, "prefect_port": first + 6}
            return ServicesConfig(folder.resolve(), s3_port=first, **{**names, **more})
    pytest.fail("no free ports")


def settings_as_variables(settings: ServicesConfig) -> dict[str, str]:
    return {f"SERVERS_{name.upper()}": str(value) for name, value in vars(settings).items()}
