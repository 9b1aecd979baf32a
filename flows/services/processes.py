"""Server processes that outlive the command that started them, with a log and a pid file.

A process belongs to a server if its environment has the server's mark, if it runs inside the server's folder
(PostgreSQL clears its environment), or if the pid file has its number and start time; a number alone may be
another process by now.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import psutil

MARK = "THOUSANDWORDS_SERVER"  # in the environment of every server and so of all its children
CLIENT_PREFIXES = ("AWS_", "MLFLOW_", "PREFECT_", "PG", "SERVERS_")  # client settings are not for the servers
NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def launch(
    name: str, command: list[str], folder: Path, env: dict[str, str], user: str | None = None
) -> subprocess.Popen:
    """Start a server in its own session.

    Its log is `folder/logs/NAME.log`, its pid file `folder/NAME.pid`.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with open(log_file(folder, name), "wb") as log:
        process = subprocess.Popen(
            command,
            env={**env, MARK: _mark(folder, name)},
            cwd=folder / name,
            user=user,
            extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with contextlib.suppress(psutil.NoSuchProcess):
        born = psutil.Process(process.pid).create_time()
        _pid_file(folder, name).write_text(json.dumps({"pid": process.pid, "born": born}))
    return process


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without client settings. The project stays importable from any folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(CLIENT_PREFIXES)}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))
    return {**inherited, **NO_TELEMETRY, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def leader(folder: Path, name: str) -> psutil.Process | None:
    """The process that the pid file names, if it is still the one that was started."""
    try:
        record = json.loads(_pid_file(folder, name).read_text())
        process = psutil.Process(record["pid"])
        is_same = abs(process.create_time() - record["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return process if is_same else None


def server_processes(folder: Path, name: str) -> list[psutil.Process]:
    """Every live process of this server, its leader first; also those whose leader was killed."""
    first = leader(folder, name)
    processes = [first] if first else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            if process != first and not is_zombie and _belongs(process, folder, name):
                processes.append(process)
    return processes


def _belongs(process: psutil.Process, folder: Path, name: str) -> bool:
    with contextlib.suppress(psutil.AccessDenied):
        if process.environ().get(MARK) == _mark(folder, name):
            return True
    return name == "postgres" and Path(process.cwd()).is_relative_to(folder.resolve() / name)


def end_server(folder: Path, name: str, stop: signal.Signals = signal.SIGTERM, patience: float = 20) -> int:
    """End a server and all its processes: signal the leader, then all, then kill.

    Returns how many there were.
    """
    alive = server_processes(folder, name)
    if first := leader(folder, name):
        _signal([first], stop)
        psutil.wait_procs(alive, timeout=patience)
    _, remaining = psutil.wait_procs(server_processes(folder, name), timeout=0)
    _signal(remaining, signal.SIGTERM)
    psutil.wait_procs(remaining, timeout=patience / 4)
    while remaining := server_processes(folder, name):  # repeated: a process may start another before it dies
        _signal(remaining, signal.SIGKILL)
        psutil.wait_procs(remaining, timeout=5)
    _pid_file(folder, name).unlink(missing_ok=True)
    return len(alive)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # as servers do: a recently closed connection is no obstacle
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def last_lines(folder: Path, name: str, count: int = 15) -> str:
    try:
        lines = log_file(folder, name).read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(f"  {line[:300]}" for line in lines[-count:]) or "  (an empty log)"


def log_file(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.log"


def _pid_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"


def _mark(folder: Path, name: str) -> str:
    return f"{os.fspath(folder.resolve())}:{name}"
