"""Start, stop and inspect the team's servers on this machine."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from flows.services import postgres_server, processes, specs
from flows.services.specs import Passwords, Server, ServicesConfig
from thousandwords.core.errors import UserError
from thousandwords.core.locks import take_lock

NAMES = ("postgres", "s3", "mlflow", "prefect")
REMOTE = "servers"
SECONDS_TO_START = 180  # a busy machine with two cores needs half a minute for MLflow


def start(settings: ServicesConfig) -> None:
    """Start all servers in order. If one fails, none is left running.

    Raises UserError with its last lines.
    """
    if missing := specs.missing_requirements():
        raise UserError("; ".join(missing))
    with _lock(settings.folder):
        if all(processes.leader(settings.folder, name) for name in NAMES):
            print(f"servers: running already ({settings.folder})")
            return
        _stop_all(settings.folder)
        check_ports(settings)
        passwords = specs.ensure_passwords(settings.folder)
        try:
            _start_all(settings, passwords)
        except BaseException:
            _stop_all(settings.folder)
            raise


def _start_all(settings: ServicesConfig, passwords: Passwords) -> None:
    for name in NAMES:
        (settings.folder / name).mkdir(exist_ok=True)
    postgres_server.make_folder(settings.folder / "postgres", passwords.postgres_password)
    auth = settings.folder / "mlflow" / "auth.ini"
    auth.touch(mode=0o600)
    auth.write_text(specs.mlflow_auth(settings, passwords))
    (settings.folder / "s3" / "ready").unlink(missing_ok=True)
    for server in specs.servers(settings, passwords):
        began = time.monotonic()
        process = processes.launch(server.name, server.command, settings.folder, server.env, server.user)
        wait_until_up(server, process, settings.folder, SECONDS_TO_START)
        if server.name == "postgres":
            postgres_server.make_databases(settings.postgres_port, passwords.postgres_password)
        port = settings.ports()[server.name][0]
        print(
            f"servers: {server.name} at 127.0.0.1:{port} after {time.monotonic() - began:.0f} s", flush=True
        )


def wait_until_up(server: Server, process: subprocess.Popen, folder: Path, seconds: float) -> None:
    """Return as soon as the server answers. Raises UserError if it ends, or does not answer in time."""
    deadline = time.monotonic() + seconds
    while not server.is_up():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            reason = (
                f"ended with code {code}"
                if code is not None
                else f"did not answer within {seconds:g} seconds"
            )
            log = processes.log_file(folder, server.name)
            raise UserError(
                f"{server.name} {reason}; the others were stopped. The last lines of {log}:\n"
                + processes.last_lines(folder, server.name)
            )
        time.sleep(0.3)


def check_ports(settings: ServicesConfig) -> None:
    """Raises UserError with the first port that another program uses, and the setting that changes it."""
    for name, ports in settings.ports().items():
        for port in ports:
            if not processes.is_free(port):
                also = " (the store uses four in a row)" if name == "s3" else ""
                raise UserError(
                    f"port {port} of 127.0.0.1 is taken, but {name} needs it. "
                    f"Set SERVERS_{name.upper()}_PORT to another{also}, or stop the program that uses it"
                )


def stop(settings: ServicesConfig) -> None:
    """End every process of these servers, also those whose parent was killed."""
    if not settings.folder.is_dir():
        print(f"servers: none were ever started in {settings.folder}")
        return
    with _lock(settings.folder):
        count = _stop_all(settings.folder)
    print(f"servers: stopped ({count} processes)")


def _stop_all(folder: Path) -> int:
    signals = {"postgres": signal.SIGINT}  # SIGTERM would wait for every client to disconnect
    return sum(
        processes.end_server(folder, name, signals.get(name, signal.SIGTERM)) for name in reversed(NAMES)
    )


def status(settings: ServicesConfig) -> bool:
    """Print a line per server; whether all are up."""
    leaders = {name: processes.leader(settings.folder, name) for name in NAMES}
    for name, process in leaders.items():
        address = f"127.0.0.1:{settings.ports()[name][0]}"
        print(f"{name:9} {address:16} " + (f"up, process {process.pid}" if process else "down"))
    return all(leaders.values())


def export_lines(variables: dict[str, str]) -> str:
    """{"A": "x y"} -> "export A='x y'" """
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def write_remote(settings: ServicesConfig, passwords: Passwords, project: Path) -> None:
    """Write the remote `servers` into a clone's .dvc/config.local, which git ignores and only its owner reads."""
    from dvc.config import Config

    config = Config(str(project / ".dvc"), validate=False)
    with config.edit("local") as local:
        local.setdefault("remote", {})[REMOTE] = specs.dvc_remote(settings, passwords)
    (project / ".dvc" / "config.local").chmod(0o600)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One start or stop at a time.

    Other users may enter the folder, as user postgres must, but read nothing in it.
    """
    file = take_lock(folder / "lock")
    if not file:
        raise UserError(f"another command is starting or stopping the servers of {folder}; wait for it")
    with file:
        folder.chmod(0o711)
        yield
