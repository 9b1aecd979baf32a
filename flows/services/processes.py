"""Processes that outlive the command that started them: a log, a pid file, an end that leaves nothing behind.

A process is ours when its environment carries our mark, when it works inside our folder (PostgreSQL wipes its environment),
or when the pid file names it together with the second it was born; a number alone may belong to somebody else by now.
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
OTHERS = ("AWS_", "MLFLOW_", "PREFECT_", "PG", "SERVERS_")  # a client's settings are not meant for the servers
QUIET = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def launch(name: str, command: list[str], folder: Path, env: dict[str, str], user: str | None = None) -> subprocess.Popen:
    """Starts a server in a session of its own, its lines in `folder/logs/NAME.log`, itself in `folder/NAME.pid`."""
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


def environment(**more: str) -> dict[str, str]:
    """This environment without what is meant for clients. The project stays importable from any folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")]))
    return {**kept, **QUIET, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


def leader(folder: Path, name: str) -> psutil.Process | None:
    """The process that the pid file names, if it is still the one that was started."""
    try:
        record = json.loads(_pid_file(folder, name).read_text())
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return process if same else None


def ours(folder: Path, name: str) -> list[psutil.Process]:
    """Every living process of this server, its leader first; also those whose leader was killed."""
    first = leader(folder, name)
    found = [first] if first else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process != first and process.status() != psutil.STATUS_ZOMBIE and _belongs(process, folder, name):
                found.append(process)
    return found


def _belongs(process: psutil.Process, folder: Path, name: str) -> bool:
    with contextlib.suppress(psutil.AccessDenied):
        if process.environ().get(MARK) == _mark(folder, name):
            return True
    return name == "postgres" and Path(process.cwd()).is_relative_to(folder.resolve() / name)


def end(folder: Path, name: str, stop: signal.Signals = signal.SIGTERM, patience: float = 20) -> int:
    """Ends a server with all that it started: the leader is asked, then everybody, then killed. Returns how many there were."""
    alive = ours(folder, name)
    if first := leader(folder, name):
        _signal([first], stop)
        psutil.wait_procs(alive, timeout=patience)
    _, stubborn = psutil.wait_procs(ours(folder, name), timeout=0)
    _signal(stubborn, signal.SIGTERM)
    psutil.wait_procs(stubborn, timeout=patience / 4)
    while left := ours(folder, name):  # again and again: one that is being killed may still start another
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=5)
    _pid_file(folder, name).unlink(missing_ok=True)
    return len(alive)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a connection just closed is no obstacle
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
