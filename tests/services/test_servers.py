"""How the servers are started, found and ended, with small stand-ins. The real servers: test_team.py.

Settings: tests/unit/flows.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.services import commands, specs
from flows.services.commands import check_ports, is_free, processes_of, start, stop
from flows.services.specs import ServicesConfig
from tests.helpers.paths import ROOT
from thousandwords.core.errors import UserError


@pytest.fixture
def folder():
    """A short path: that of a socket file has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="servers-"))
    yield folder
    shutil.rmtree(folder)


def test_a_taken_port_is_named_with_the_setting_that_changes_it():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = (
            f"port {port} of 127.0.0.1 is taken, but mlflow needs it. Set SERVERS_MLFLOW_PORT to another, or"
        )
        with pytest.raises(UserError, match=re.escape(message)):
            check_ports(free_settings(Path("."), mlflow_port=port))


def test_a_folder_whose_path_is_too_long_for_a_socket_is_named():
    with pytest.raises(UserError, match="is too long. Set SERVERS_FOLDER to a folder of at most 90 bytes"):
        start(free_settings(Path("/tmp") / ("a" * 90)))


PRINT_VARIABLES = (
    "import flows, os; print(*(os.environ.get(name) for name in ('PREFECT_API_URL', 'MLFLOW_TRACKING_URI')))"
)


@pytest.mark.parametrize("is_up", [True, False])
def test_flows_use_the_running_servers_of_their_folder_unless_the_environment_names_others(folder, is_up):
    settings = free_settings(folder / ".servers")
    settings.folder.mkdir()
    specs.ensure_passwords(settings.folder)
    others = ("PREFECT_", "MLFLOW_", "SERVERS_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    own |= {"PYTHONPATH": str(ROOT), "SERVERS_PREFECT_PORT": "4321", "SERVERS_MLFLOW_PORT": "5432"}

    def addresses(**more: str) -> list[str]:
        command = [sys.executable, "-c", PRINT_VARIABLES]
        return subprocess.check_output(command, cwd=folder, env=own | more, text=True).split()

    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(str(specs.socket_file(settings.folder)))
        if is_up:
            supervisor.listen()
        expected = ["http://127.0.0.1:4321/api", "http://127.0.0.1:5432"] if is_up else ["None", "None"]
        assert addresses() == expected
        assert addresses(PREFECT_API_URL="http://elsewhere/api") == ["http://elsewhere/api", "None"]


FAMILY = """
import subprocess, sys, time
if len(sys.argv) == 1:
    for own_session in (False, True):
        subprocess.Popen([sys.executable, __file__, "child"], start_new_session=own_session)
print("here", flush=True)
time.sleep(60)
"""


def with_fakes(folder: Path, monkeypatch, mlflow: str, prefect: str) -> ServicesConfig:
    """Settings of two servers, each a process with two children that has printed "here" three times when it is up."""
    for name, source in (("mlflow", mlflow), ("prefect", prefect)):
        (folder / f"{name}.py").write_text(source)
    supervisor_file = specs.supervisor_file

    def with_scripts(*args) -> str:
        script = f"command = {sys.executable} {folder}/\\1.py\nenvironment ="
        return re.sub(r"command = \S+ -m (\w+)[^=]*\nenvironment =", script, supervisor_file(*args))

    def is_up(name: str, *_) -> bool:
        log = folder / "logs" / f"{name}.log"
        return log.is_file() and log.read_text().count("here") == 3

    monkeypatch.setattr(specs, "supervisor_file", with_scripts)
    monkeypatch.setattr(specs, "is_up", is_up)
    return free_settings(folder)


@pytest.mark.parametrize("are_killed", [False, True])
def test_a_stop_leaves_no_process_even_if_all_leaders_were_killed(folder, monkeypatch, capsys, are_killed):
    settings = with_fakes(folder, monkeypatch, FAMILY, FAMILY)
    start(settings)
    start(settings)
    assert "running already" in capsys.readouterr().out
    everyone = processes_of(folder)
    assert len(everyone) == 7 and commands.status(settings)
    for process in everyone:
        if are_killed and ("supervisor.supervisord" in process.cmdline() or process.ppid() == 1):
            process.send_signal(signal.SIGKILL)
    stop(settings)
    stop(settings)
    assert processes_of(folder) == [] and "stopped (0 processes)" in capsys.readouterr().out
    psutil.wait_procs(everyone, timeout=2)  # a killed process has no environment before it is gone
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in everyone)


def test_if_one_server_fails_none_is_left_running_and_its_last_lines_are_shown(folder, monkeypatch):
    settings = with_fakes(folder, monkeypatch, FAMILY, "raise SystemExit('no such database')")
    with pytest.raises(UserError, match=r"prefect ended; the others were stopped(.|\n)*\n  no such database"):
        start(settings)
    assert processes_of(folder) == []


def free_settings(folder: Path, **more: object) -> ServicesConfig:
    """Settings with free ports."""
    for first in range(20000 + os.getpid() % 1000 * 10, 60000, 10):
        if all(is_free(port) for port in range(first, first + 4)):
            return replace(ServicesConfig(folder.resolve(), *range(first, first + 4)), **more)
    pytest.fail("no free ports")


def settings_as_variables(settings: ServicesConfig) -> dict[str, str]:
    return {
        f"SERVERS_{name.upper()}": str(value) for name, value in vars(settings).items() if name != "is_team"
    }
