"""Start, stop and inspect the servers of this machine; supervisord keeps them running."""

import contextlib
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xmlrpc.client import Fault, ServerProxy

import psutil

from flows.services import postgres_server, specs
from flows.services.specs import Passwords, ServicesConfig
from flows.workers import gpu_lock
from thousandwords.core.errors import UserError
from thousandwords.core.locks import take_lock

SECONDS_TO_START = 600  # Prefect needs six minutes with PostgreSQL on two cores that fifteen processes share
MAX_PATH = 90  # bytes of the folder's path: that of supervisord's socket file has at most 107


def start(settings: ServicesConfig) -> None:
    """Start all servers in order; if one fails, stop all and raise UserError with its last lines."""
    folder, names = settings.folder, list(settings.ports())
    if missing := specs.missing_requirements(settings.is_team):
        raise UserError("; ".join(missing))
    with _lock(folder):
        states = _states(folder)
        if all(states.get(name) for name in names):
            print(f"servers: running already ({folder})")
            return
        _stop_all(folder)
        check_ports(settings)
        passwords = specs.ensure_passwords(folder)
        try:
            for name in ("logs", *names):
                (folder / name).mkdir(exist_ok=True)
            if settings.is_team:
                postgres_server.make_folder(folder / "postgres", passwords.postgres_password)
                (folder / "s3" / "ready").unlink(missing_ok=True)
            specs.write_secret(folder / "mlflow" / "auth.ini", specs.mlflow_auth(settings, passwords))
            specs.write_secret(folder / "supervisord.conf", specs.supervisor_file(settings, passwords))
            _start_supervisor(folder)
            if settings.is_team:
                names.remove("postgres")
                _start_servers(["postgres"], settings, passwords)
                postgres_server.make_databases(settings.postgres_port, passwords.postgres_password)
            _start_servers(names, settings, passwords)
        except BaseException:
            _stop_all(folder)
            raise


def _start_supervisor(folder: Path) -> None:
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(folder / "supervisord.conf")]
    env = specs.environment(**{specs.MARK: str(folder)})
    result = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    deadline = time.monotonic() + 30
    while not is_running(folder):
        if result.returncode or time.monotonic() > deadline:
            raise UserError(f"supervisord did not start: {(result.stderr + result.stdout).strip()[-500:]}")
        time.sleep(0.1)


def _start_servers(names: list[str], settings: ServicesConfig, passwords: Passwords) -> None:
    """Start these servers and return when all answer. Raises UserError if one ends, or is too slow."""
    began, processes = time.monotonic(), {}
    for name in names:
        with contextlib.suppress(Fault):
            _supervisor(settings.folder).startProcess(name)
        processes[name] = _states(settings.folder).get(name)
    for name in names:
        while not specs.is_up(name, settings, passwords):
            has_ended = not processes[name] or _states(settings.folder).get(name) != processes[name]
            if has_ended or time.monotonic() > began + SECONDS_TO_START:
                reason = "ended" if has_ended else f"did not answer within {SECONDS_TO_START} seconds"
                log = settings.folder / "logs" / f"{name}.log"
                lines = log.read_text(errors="replace").splitlines()[-15:] if log.is_file() else []
                shown = "\n".join(f"  {line[:300]}" for line in lines) or "  (an empty log)"
                found = f"{name} {reason}; the others were stopped"
                raise UserError(f"{found}. The last lines of {log}:\n{shown}")
            time.sleep(0.3)
        seconds = time.monotonic() - began
        print(f"servers: {name} at 127.0.0.1:{settings.ports()[name]} after {seconds:.0f} s", flush=True)


def _supervisor(folder: Path) -> ServerProxy:
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(None, None, f"unix://{specs.socket_file(folder)}")
    return ServerProxy("http://127.0.0.1", transport).supervisor


def is_running(folder: Path) -> bool:
    """Whether the folder's servers are supervised now."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(specs.socket_file(folder)))
        return True
    return False


def _states(folder: Path) -> dict[str, int]:
    """{server: its process, 0 if it is down}; {} if no supervisord answers."""
    if not is_running(folder):
        return {}
    return {info["name"]: info["pid"] for info in _supervisor(folder).getAllProcessInfo()}


def check_ports(settings: ServicesConfig) -> None:
    """Raises UserError with the first port that another program uses, and the setting that changes it."""
    for name, port in settings.ports().items():
        if not is_free(port):
            raise UserError(
                f"port {port} of 127.0.0.1 is taken, but {name} needs it. "
                f"Set SERVERS_{name.upper()}_PORT to another, or stop the program that uses it"
            )


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with contextlib.suppress(OSError):
        socket.create_server(("127.0.0.1", port)).close()
        return True
    return False


def stop(settings: ServicesConfig) -> None:
    """End every process of these servers, also those whose supervisor was killed."""
    if not settings.folder.is_dir():
        print(f"servers: none were ever started in {settings.folder}")
        return
    with _lock(settings.folder):
        count = _stop_all(settings.folder)
    print(f"servers: stopped ({count} processes)")


def _stop_all(folder: Path) -> int:
    """Supervisord ends its servers; what is left after that was left behind by a kill. Returns how many there were."""
    alive = processes_of(folder)
    if is_running(folder):
        with contextlib.suppress(Fault, OSError, psutil.Error):  # it is being stopped already
            supervisor = psutil.Process(_supervisor(folder).getPID())
            _supervisor(folder).shutdown()
            supervisor.wait(timeout=90)
    gpu_lock.end_all(lambda: processes_of(folder), grace=5)
    return len(alive)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every live process of these servers: marked in its environment, which PostgreSQL clears, or in its folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_postgres = Path(process.cwd()).is_relative_to(folder.resolve() / "postgres")
            if is_postgres or process.environ().get(specs.MARK) == str(folder.resolve()):
                found.append(process)
    return found


def status(settings: ServicesConfig) -> bool:
    """Print a line per server; whether all are up."""
    states = _states(settings.folder)
    for name, port in settings.ports().items():
        state = f"up, process {states[name]}" if states.get(name) else "down"
        print(f"{name:9} {f'127.0.0.1:{port}':16} {state}")
    return all(states.get(name) for name in settings.ports())


def export_lines(variables: dict[str, str]) -> str:
    """{"A": "x y"} -> "export A='x y'" """
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One start or stop at a time. Others may enter the folder, as user postgres must, but read nothing."""
    if len(str(folder).encode()) > MAX_PATH:
        fix = f"Set SERVERS_FOLDER to a folder of at most {MAX_PATH} bytes"
        raise UserError(f"the path {folder} is too long. {fix}")
    file = take_lock(folder / "lock")
    if not file:
        raise UserError(f"another command is starting or stopping the servers of {folder}; wait for it")
    with file:
        folder.chmod(0o711)
        yield
