"""python -m flows.servers start | stop | status | env | remote: the servers of a team on this machine, without docker.

PostgreSQL, an S3 store, MLflow and Prefect, with passwords, on 127.0.0.1 only, everything in .servers/. Ports and folder come
from SERVERS_FOLDER, SERVERS_POSTGRES_PORT, SERVERS_S3_PORT, SERVERS_MLFLOW_PORT and SERVERS_PREFECT_PORT.
"""
from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from flows import database, processes, services
from flows.services import Passwords, Server, Settings
from thousandwords.errors import UserError

NAMES = ("postgres", "s3", "mlflow", "prefect")
REMOTE = "servers"
SECONDS_TO_START = 180  # a busy machine of two cores needs half a minute for MLflow


def start(settings: Settings) -> None:
    """All servers, each once those that it needs are up. When one fails, none is left. Raises UserError with its last lines."""
    if absent := services.missing():
        raise UserError("; ".join(absent))
    with _lock(settings.folder):
        if all(processes.leader(settings.folder, name) for name in NAMES):
            print(f"servers: running already ({settings.folder})")
            return
        _stop_all(settings.folder)
        refuse_taken_ports(settings)
        passwords = services.keep_passwords(settings.folder)
        try:
            _start_all(settings, passwords)
        except BaseException:
            _stop_all(settings.folder)
            raise


def _start_all(settings: Settings, passwords: Passwords) -> None:
    for name in NAMES:
        (settings.folder / name).mkdir(exist_ok=True)
    database.make_folder(settings.folder / "postgres", passwords.postgres_password)
    auth = settings.folder / "mlflow" / "auth.ini"
    auth.touch(mode=0o600)
    auth.write_text(services.mlflow_auth(settings, passwords))
    (settings.folder / "s3" / "ready").unlink(missing_ok=True)
    for server in services.servers(settings, passwords):
        began = time.monotonic()
        process = processes.launch(server.name, server.command, settings.folder, server.env, server.user)
        wait_until_up(server, process, settings.folder, SECONDS_TO_START)
        if server.name == "postgres":
            database.make_databases(settings.postgres_port, passwords.postgres_password)
        port = settings.ports()[server.name][0]
        print(f"servers: {server.name} at 127.0.0.1:{port} after {time.monotonic() - began:.0f} s", flush=True)


def wait_until_up(server: Server, process: subprocess.Popen, folder: Path, seconds: float) -> None:
    """Returns once the server answers. Raises UserError when it ends, or does not answer in time."""
    until = time.monotonic() + seconds
    while not server.is_up():
        code = process.poll()
        if code is not None or time.monotonic() > until:
            what = f"ended with code {code}" if code is not None else f"did not answer within {seconds:g} seconds"
            raise UserError(
                f"{server.name} {what}; the others were stopped. The last lines of {processes.log_file(folder, server.name)}:\n"
                + processes.last_lines(folder, server.name)
            )
        time.sleep(0.3)


def refuse_taken_ports(settings: Settings) -> None:
    """Raises UserError that names the first port on which somebody else listens, and the setting that changes it."""
    for name, ports in settings.ports().items():
        for port in ports:
            if not processes.is_free(port):
                also = " (the store takes four in a row)" if name == "s3" else ""
                raise UserError(
                    f"port {port} of 127.0.0.1 is taken, and {name} wants it. "
                    f"Set SERVERS_{name.upper()}_PORT to another{also}, or stop what listens there"
                )


def stop(settings: Settings) -> None:
    """Ends every process of these servers, also those whose parent was killed."""
    if not settings.folder.is_dir():
        print(f"servers: none were ever started in {settings.folder}")
        return
    with _lock(settings.folder):
        count = _stop_all(settings.folder)
    print(f"servers: stopped ({count} processes)")


def _stop_all(folder: Path) -> int:
    ways = {"postgres": signal.SIGINT}  # SIGTERM would wait for every client to leave
    return sum(processes.end(folder, name, ways.get(name, signal.SIGTERM)) for name in reversed(NAMES))


def status(settings: Settings) -> bool:
    """Prints a line per server; whether all are up."""
    alive = {name: processes.leader(settings.folder, name) for name in NAMES}
    for name, process in alive.items():
        where = f"127.0.0.1:{settings.ports()[name][0]}"
        print(f"{name:9} {where:16} " + (f"up, process {process.pid}" if process else "down"))
    return all(alive.values())


def export_lines(variables: dict[str, str]) -> str:
    """{"A": "x y"} -> "export A='x y'" """
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def write_remote(settings: Settings, passwords: Passwords, project: Path) -> None:
    """Puts the remote `servers` into .dvc/config.local of a clone, which git ignores and only its owner reads."""
    from dvc.config import Config

    config = Config(str(project / ".dvc"), validate=False)
    with config.edit("local") as local:
        local.setdefault("remote", {})[REMOTE] = services.dvc_remote(settings, passwords)
    (project / ".dvc" / "config.local").chmod(0o600)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One start or stop at a time. Others may enter the folder, as user postgres must, but read nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"the servers of {folder} are being started or stopped by another command; wait for it") from error
        yield


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "stop", "status", "env", "remote"))
    what = parser.parse_args(argv).what
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a start that is stopped takes what it started along
    try:
        settings = services.read_settings(dict(os.environ))
        if what == "status":
            raise SystemExit(0 if status(settings) else 1)
        {"start": _start, "stop": stop, "env": _env, "remote": _remote}[what](settings)
    except UserError as error:
        raise SystemExit(f"servers: {error}") from error


def _start(settings: Settings) -> None:
    start(settings)
    if Path(".dvc").is_dir():
        _remote(settings)
    print("servers: the flows, workers and registry of this folder use them from now on; any other program after")
    print('         eval "$(python -m flows.servers env)"')


def _env(settings: Settings) -> None:
    print(export_lines(services.client_environment(settings, services.read_passwords(settings.folder))))


def _remote(settings: Settings) -> None:
    write_remote(settings, services.read_passwords(settings.folder), Path("."))
    print(f"servers: dvc push -r {REMOTE} goes to the store")


if __name__ == "__main__":
    main()
