"""The servers of a team (PostgreSQL, S3, MLflow, Prefect): command, environment and health check.

Passwords are passed by environment and by files of mode 600, never on a command line, which any user can
read.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from flows.services import postgres_server, s3_server
from flows.services.postgres_server import USER
from flows.services.processes import environment
from thousandwords.core.errors import UserError

S3_USER = "thousandwords:team"
MLFLOW_USER = "admin"
PACKAGES = ("swift", "boto3", "dvc_s3", "psycopg2", "asyncpg", "flask_wtf", "mlflow", "prefect")


@dataclass(frozen=True)
class ServicesConfig:
    """The folder and the ports of the servers; each from the variable SERVERS_<NAME>."""

    folder: Path = Path(".servers")
    postgres_port: int = 5442  # not 5432: the distribution's own server may use it
    s3_port: int = 9000  # the store uses the three after it too
    mlflow_port: int = 5000
    prefect_port: int = 4200

    def __post_init__(self) -> None:
        owners: dict[int, str] = {}
        for name, ports in self.ports().items():
            for port in ports:
                if not 1024 <= port <= 65535:
                    raise UserError(
                        f"SERVERS_{name.upper()}_PORT leads to port {port}; ports from 1024 to 65535 can be used"
                    )
                if port in owners:
                    raise UserError(
                        f"SERVERS_{name.upper()}_PORT and SERVERS_{owners[port].upper()}_PORT both lead to port {port}; change one"
                    )
                owners[port] = name

    def ports(self) -> dict[str, list[int]]:
        """{server: every port it uses}"""
        return {
            "postgres": [self.postgres_port],
            "s3": s3_server.ports(self.s3_port),
            "mlflow": [self.mlflow_port],
            "prefect": [self.prefect_port],
        }


def read_settings(environ: dict[str, str]) -> ServicesConfig:
    """Settings from SERVERS_FOLDER, SERVERS_MLFLOW_PORT and so on. Raises UserError for an invalid port."""
    values: dict[str, object] = {}
    for field in fields(ServicesConfig):
        if text := environ.get(f"SERVERS_{field.name.upper()}"):
            if field.name != "folder" and not text.isdecimal():
                raise UserError(f"SERVERS_{field.name.upper()} is {text!r}; it must be a port number")
            values[field.name] = Path(text) if field.name == "folder" else int(text)
    values["folder"] = Path(values.get("folder", ServicesConfig.folder)).resolve()
    return ServicesConfig(**values)


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


@dataclass(frozen=True)
class Server:
    name: str
    command: list[str]
    env: dict[str, str]
    is_up: Callable[[], bool]
    user: str | None = None


def servers(settings: ServicesConfig, passwords: Passwords) -> list[Server]:
    """All four servers, each after those that it needs."""
    specs = (_postgres, _s3, _mlflow, _prefect)
    return [spec(settings, passwords) for spec in specs]


def _postgres(settings: ServicesConfig, passwords: Passwords) -> Server:
    command = [f"{postgres_server.programs()}/postgres", "-D", str(settings.folder / "postgres" / "data")]
    for name, value in {
        "port": settings.postgres_port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
    }.items():
        command += ["-c", f"{name}={value}"]

    def is_up() -> bool:
        return (
            postgres_server.sql(settings.postgres_port, passwords.postgres_password, "select 1").returncode
            == 0
        )

    return Server("postgres", command, environment(), is_up, user=postgres_server.user())


def _s3(settings: ServicesConfig, passwords: Passwords) -> Server:
    folder = settings.folder / "s3"
    command = [
        sys.executable,
        "-m",
        "flows.services.s3_server",
        "--folder",
        str(folder),
        "--port",
        str(settings.s3_port),
    ]
    return Server("s3", command, environment(**_s3_keys(passwords)), lambda: (folder / "ready").is_file())


def _mlflow(settings: ServicesConfig, passwords: Passwords) -> Server:
    port, folder = settings.mlflow_port, settings.folder / "mlflow"
    hosts = ",".join(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))
    env = environment(
        **_s3_keys(passwords),
        MLFLOW_S3_ENDPOINT_URL=f"http://127.0.0.1:{settings.s3_port}",
        MLFLOW_BACKEND_STORE_URI=_database(settings, passwords, "postgresql+psycopg2", "mlflow"),
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
        MLFLOW_AUTH_ADMIN_USERNAME=MLFLOW_USER,
        MLFLOW_AUTH_ADMIN_PASSWORD=passwords.mlflow_password,
        MLFLOW_FLASK_SERVER_SECRET_KEY=passwords.mlflow_secret_key,
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "2",
    ]
    command += [
        "--app-name",
        "basic-auth",
        "--artifacts-destination",
        "s3://mlflow",
        "--allowed-hosts",
        hosts,
    ]
    command += ["--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts.split(","))]
    return Server("mlflow", command, env, lambda: _answers(f"http://127.0.0.1:{port}/health"))


def _prefect(settings: ServicesConfig, passwords: Passwords) -> Server:
    port = settings.prefect_port
    env = environment(
        PREFECT_HOME=str(settings.folder / "prefect"),
        PREFECT_API_DATABASE_CONNECTION_URL=_database(settings, passwords, "postgresql+asyncpg", "prefect"),
        PREFECT_SERVER_API_AUTH_STRING=f"{USER}:{passwords.prefect_password}",
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS=f"http://127.0.0.1:{port},http://localhost:{port}",
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return Server("prefect", command, env, lambda: _answers(f"http://127.0.0.1:{port}/api/health"))


def mlflow_auth(settings: ServicesConfig, passwords: Passwords) -> str:
    """MLflow's auth.ini: users are in PostgreSQL; a new user has no permissions.

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
    keys = _s3_keys(passwords)
    return {
        "url": "s3://dvc",
        "endpointurl": f"http://127.0.0.1:{settings.s3_port}",
        "access_key_id": keys["AWS_ACCESS_KEY_ID"],
        "secret_access_key": keys["AWS_SECRET_ACCESS_KEY"],
        "region": keys["AWS_DEFAULT_REGION"],
    }


def missing_requirements() -> list[str]:
    """What is not installed here, as sentences that say how to install it."""
    sentences = []
    packages = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if packages:
        elsewhere = (
            ""
            if sys.platform == "linux"
            else " (swift, the store, runs on Linux only; elsewhere: docker compose up)"
        )
        sentences.append(
            f"the Python packages {', '.join(packages)} are missing. Run: pip install '.[servers]'{elsewhere}"
        )
    try:
        postgres_server.programs()
        postgres_server.user()
    except UserError as error:
        sentences.append(str(error))
    return sentences


def _database(settings: ServicesConfig, passwords: Passwords, driver: str, name: str) -> str:
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
