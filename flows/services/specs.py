"""The servers: MLflow and Prefect with SQLite, or those of a team, with PostgreSQL and an S3 store.

Settings, passwords, and the one file from which supervisord runs them. Passwords are passed by environment and
by files of mode 600, never on a command line, which any user can read.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shlex
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from flows.services import postgres_server
from flows.services.postgres_server import USER
from thousandwords.core.errors import UserError

S3_USER = "thousandwords:team"
MLFLOW_USER = "admin"
PACKAGES = ("supervisor", "mlflow", "flask_wtf", "prefect")
TEAM_PACKAGES = ("swift", "boto3", "dvc_s3", "psycopg2", "asyncpg")
MARK = "THOUSANDWORDS_SERVERS"  # the folder of the servers, in the environment of each of their processes
CLIENT_PREFIXES = ("AWS_", "MLFLOW_", "PREFECT_", "PG", "SERVERS_")  # client settings are not for the servers
NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


@dataclass(frozen=True)
class ServicesConfig:
    """The folder and the ports of the servers; each from the variable SERVERS_<NAME>."""

    folder: Path = Path(".servers")
    postgres_port: int = 5442  # not 5432: the distribution's own server may use it
    s3_port: int = 9000
    mlflow_port: int = 5000
    prefect_port: int = 4200
    is_team: bool = False  # with PostgreSQL and the store; a folder that has once had them keeps them

    def __post_init__(self) -> None:
        owners: dict[int, str] = {}
        for name, port in self.ports().items():
            if not 1024 <= port <= 65535:
                raise UserError(
                    f"SERVERS_{name.upper()}_PORT is {port}; ports from 1024 to 65535 can be used"
                )
            if port in owners:
                raise UserError(
                    f"SERVERS_{name.upper()}_PORT and SERVERS_{owners[port].upper()}_PORT are both {port}; change one"
                )
            owners[port] = name

    def ports(self) -> dict[str, int]:
        """{server: its port}, in the order of their start."""
        names = ("postgres", "s3", "mlflow", "prefect") if self.is_team else ("mlflow", "prefect")
        return {name: getattr(self, f"{name}_port") for name in names}


def socket_file(folder: Path) -> Path:
    """Where the folder's supervisord answers."""
    return folder / "supervisor.sock"


def read_settings(environ: dict[str, str]) -> ServicesConfig:
    """Settings from SERVERS_FOLDER, SERVERS_MLFLOW_PORT and so on. Raises UserError for an invalid port."""
    values: dict[str, object] = {}
    for field in fields(ServicesConfig)[:-1]:
        if text := environ.get(f"SERVERS_{field.name.upper()}"):
            if field.name != "folder" and not text.isdecimal():
                raise UserError(f"SERVERS_{field.name.upper()} is {text!r}; it must be a port number")
            values[field.name] = Path(text) if field.name == "folder" else int(text)
    values["folder"] = Path(values.get("folder", ServicesConfig.folder)).resolve()
    return ServicesConfig(**values, is_team=(values["folder"] / "postgres" / "data").is_dir())


@dataclass(frozen=True)
class Passwords:
    """One password per server, created once, in a file that only its owner reads."""

    postgres_password: str
    s3_secret_key: str
    mlflow_password: str
    mlflow_secret_key: str  # signs MLflow's forms
    prefect_password: str


def password_file(folder: Path) -> Path:
    return folder / "passwords.env"


def ensure_passwords(folder: Path) -> Passwords:
    """The passwords of this folder; created if it has none."""
    path = password_file(folder)
    if not path.is_file():
        lines = [f"SERVERS_{field.name.upper()}={secrets.token_hex(24)}\n" for field in fields(Passwords)]
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(lines)
        temporary.rename(path)
    return read_passwords(folder)


def read_passwords(folder: Path) -> Passwords:
    """Read the passwords; raises UserError if no server was ever started here."""
    path = password_file(folder)
    try:
        lines = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
        return Passwords(
            **{field.name: lines[f"SERVERS_{field.name.upper()}"] for field in fields(Passwords)}
        )
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no passwords yet. Run: make servers") from error
    except KeyError as error:
        raise UserError(
            f"{path} has no line {error.args[0]}=; the servers of {folder} were set up with one"
        ) from error


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without client settings. The project stays importable from any folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(CLIENT_PREFIXES)}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))
    return {**inherited, **NO_TELEMETRY, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


@dataclass(frozen=True)
class Server:
    name: str
    command: list[str]
    env: dict[str, str]  # beside `environment()`
    is_up: Callable[[], bool]
    user: str | None = None


def servers(settings: ServicesConfig, passwords: Passwords) -> list[Server]:
    """Each after those that it needs."""
    makers = {"postgres": _postgres, "s3": _s3, "mlflow": _mlflow, "prefect": _prefect}
    return [makers[name](settings, passwords) for name in settings.ports()]


def _postgres(settings: ServicesConfig, passwords: Passwords) -> Server:
    port = settings.postgres_port
    options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
    command = [f"{postgres_server.programs()}/postgres", "-D", str(settings.folder / "postgres" / "data")]
    command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]

    def is_up() -> bool:
        return postgres_server.sql(port, passwords.postgres_password, "select 1").returncode == 0

    return Server("postgres", command, {}, is_up, user=postgres_server.user())


def _s3(settings: ServicesConfig, passwords: Passwords) -> Server:
    folder = settings.folder / "s3"
    options = f"-m flows.services.s3_server --port {settings.s3_port} --folder".split()
    return Server(
        "s3", [sys.executable, *options, str(folder)], _s3_keys(passwords), (folder / "ready").is_file
    )


def _mlflow(settings: ServicesConfig, passwords: Passwords) -> Server:
    port, folder = settings.mlflow_port, settings.folder / "mlflow"
    hosts = f"127.0.0.1:{port},localhost:{port}"
    env = {
        "MLFLOW_BACKEND_STORE_URI": _database(settings, passwords, "postgresql+psycopg2", "mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": MLFLOW_USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords.mlflow_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": passwords.mlflow_secret_key,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # uvicorn kills a worker that is silent for 5 s: on a busy machine, while it still imports
        "MLFLOW_UVICORN_OPTS": "--timeout-worker-healthcheck 120",
    }
    if settings.is_team:
        env |= _s3_keys(passwords) | {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{settings.s3_port}"}
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "2" if settings.is_team else "1",
        "--app-name": "basic-auth",
        "--artifacts-destination": "s3://mlflow" if settings.is_team else (folder / "artifacts").as_uri(),
        "--allowed-hosts": hosts,
        "--cors-allowed-origins": ",".join(f"http://{host}" for host in hosts.split(",")),
    }
    command = [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]
    return Server("mlflow", command, env, lambda: _answers(f"http://127.0.0.1:{port}/health"))


def _prefect(settings: ServicesConfig, passwords: Passwords) -> Server:
    port = settings.prefect_port
    env = {
        "PREFECT_HOME": str(settings.folder / "prefect"),
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{passwords.prefect_password}",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
    }
    if settings.is_team:
        database = _database(settings, passwords, "postgresql+asyncpg", "prefect")
        env["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return Server("prefect", command, env, lambda: _answers(f"http://127.0.0.1:{port}/api/health"))


# each program is started when the one that it needs answers, and again when it ends; stopped in reverse
SUPERVISOR = """[unix_http_server]
file = {folder}/supervisor.sock
chmod = 0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
logfile = {folder}/logs/supervisord.log
pidfile = {folder}/supervisord.pid
umask = 077
"""
PROGRAM = """[program:{name}]
command = {command}
directory = {folder}/{name}
environment = {environment}
priority = {priority}
autostart = false
autorestart = true
stopsignal = {stopsignal}
stopwaitsecs = 20
killasgroup = true
redirect_stderr = true
stdout_logfile = {folder}/logs/{name}.log
stdout_logfile_backups = 1
"""


def supervisor_file(folder: Path, servers: list[Server]) -> str:
    """supervisord.conf."""
    text = SUPERVISOR.format(folder=folder) + ("user = root\n" if os.geteuid() == 0 else "")
    for priority, server in enumerate(servers):
        text += PROGRAM.format(
            name=server.name,
            command=shlex.join(server.command),
            folder=folder,
            environment=",".join(f'{name}="{value}"' for name, value in server.env.items()),
            priority=priority,
            stopsignal="INT" if server.name == "postgres" else "TERM",  # its TERM waits for every client
        )
        text += f"user = {server.user}\n" if server.user else ""
    return text.replace("%", "%%")


def mlflow_auth(settings: ServicesConfig, passwords: Passwords) -> str:
    """MLflow's auth.ini: users are in a database; a new user has no permissions.

    A correct password is cached for some minutes: a check takes 0.3 s, and a rollback sends twenty requests.
    """
    return (
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\nauth_cache_ttl_seconds = 300\nauth_cache_max_size = 1000\n"
        f"database_uri = {_database(settings, passwords, 'postgresql+psycopg2', 'mlflow_auth')}\n"
    )


def client_environment(settings: ServicesConfig, passwords: Passwords) -> dict[str, str]:
    """The variables with which runs, flows and workers connect to the servers.

    They hold no key of the store: MLflow serves the artifacts, and DVC has its own key in .dvc/config.local.
    """
    return {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{settings.mlflow_port}",
        "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
        "MLFLOW_TRACKING_PASSWORD": passwords.mlflow_password,
        "PREFECT_API_URL": f"http://127.0.0.1:{settings.prefect_port}/api",
        "PREFECT_API_AUTH_STRING": f"{USER}:{passwords.prefect_password}",
    }


def dvc_remote(settings: ServicesConfig, passwords: Passwords) -> dict[str, str]:
    """The section of .dvc/config.local that lets DVC push to the store."""
    if not settings.is_team:
        raise UserError(f"the servers of {settings.folder} have no S3 store. Run: make servers TEAM=1")
    keys = _s3_keys(passwords)
    return {
        "url": "s3://dvc",
        "endpointurl": f"http://127.0.0.1:{settings.s3_port}",
        "access_key_id": keys["AWS_ACCESS_KEY_ID"],
        "secret_access_key": keys["AWS_SECRET_ACCESS_KEY"],
        "region": keys["AWS_DEFAULT_REGION"],
    }


def missing_requirements(is_team: bool = True) -> list[str]:
    """What is not installed here, as sentences that say how to install it."""
    sentences = []
    wanted = PACKAGES + (TEAM_PACKAGES if is_team else ())
    if packages := [name for name in wanted if importlib.util.find_spec(name) is None]:
        on_linux = (
            "" if sys.platform == "linux" else " (the store runs on Linux only; elsewhere: docker compose up)"
        )
        sentences.append(
            f"the Python packages {', '.join(packages)} are missing. Run: pip install '.[servers]'{on_linux}"
        )
    if is_team:
        try:
            postgres_server.programs()
            postgres_server.user()
        except UserError as error:
            sentences.append(str(error))
    return sentences


def _database(settings: ServicesConfig, passwords: Passwords, driver: str, name: str) -> str:
    if not settings.is_team:
        return f"sqlite:///{settings.folder / 'mlflow' / name}.db"
    return f"{driver}://{USER}:{passwords.postgres_password}@127.0.0.1:{settings.postgres_port}/{name}"


def _s3_keys(passwords: Passwords) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": S3_USER, "AWS_SECRET_ACCESS_KEY": passwords.s3_secret_key}
    return {**keys, "AWS_DEFAULT_REGION": "us-east-1"}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
