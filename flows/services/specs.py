"""The four servers of a team, each as a command, its environment and how to tell that it is up: PostgreSQL, S3, MLflow, Prefect.

Passwords travel by environment and by files of mode 600, never by command line: any user can read that one.
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

from flows import database, store
from flows.database import USER
from flows.processes import environment
from thousandwords.errors import UserError

S3_USER = "thousandwords:team"
MLFLOW_USER = "admin"
PACKAGES = ("swift", "boto3", "dvc_s3", "psycopg2", "asyncpg", "flask_wtf", "mlflow", "prefect")


@dataclass(frozen=True)
class Settings:
    """Where the servers live and listen; each from the variable SERVERS_<NAME>."""

    folder: Path = Path(".servers")
    postgres_port: int = 5442  # not 5432: the distribution's own server may have that one
    s3_port: int = 9000  # the store takes the three after it too
    mlflow_port: int = 5000
    prefect_port: int = 4200

    def __post_init__(self) -> None:
        seen: dict[int, str] = {}
        for name, ports in self.ports().items():
            for port in ports:
                if not 1024 <= port <= 65535:
                    raise UserError(f"SERVERS_{name.upper()}_PORT leads to port {port}; ports from 1024 to 65535 can be used")
                if port in seen:
                    raise UserError(
                        f"SERVERS_{name.upper()}_PORT and SERVERS_{seen[port].upper()}_PORT both lead to port {port}; change one"
                    )
                seen[port] = name

    def ports(self) -> dict[str, list[int]]:
        """{server: every port it takes}"""
        return {
            "postgres": [self.postgres_port],
            "s3": store.ports(self.s3_port),
            "mlflow": [self.mlflow_port],
            "prefect": [self.prefect_port],
        }


def read_settings(environ: dict[str, str]) -> Settings:
    """Settings from SERVERS_FOLDER, SERVERS_MLFLOW_PORT and so on. Raises UserError for what is no port."""
    given: dict[str, object] = {}
    for field in fields(Settings):
        if text := environ.get(f"SERVERS_{field.name.upper()}"):
            if field.name != "folder" and not text.isdecimal():
                raise UserError(f"SERVERS_{field.name.upper()} is {text!r}; it must be the number of a port")
            given[field.name] = Path(text) if field.name == "folder" else int(text)
    given["folder"] = Path(given.get("folder", Settings.folder)).resolve()
    return Settings(**given)


@dataclass(frozen=True)
class Passwords:
    """One for each door, made once; in a file that only its owner reads."""

    postgres_password: str
    s3_secret_key: str
    mlflow_password: str
    mlflow_secret_key: str  # signs MLflow's forms
    prefect_password: str


def password_file(folder: Path) -> Path:
    return folder / "passwords.env"


def keep_passwords(folder: Path) -> Passwords:
    """The passwords of this folder; new ones are made where it has none."""
    path = password_file(folder)
    if not path.is_file():
        made = [f"SERVERS_{field.name.upper()}={secrets.token_hex(24)}\n" for field in fields(Passwords)]
        fresh = path.with_suffix(".tmp")
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(made)
        fresh.rename(path)
    return read_passwords(folder)


def read_passwords(folder: Path) -> Passwords:
    """Raises UserError when no server was ever started here."""
    path = password_file(folder)
    try:
        lines = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
        return Passwords(**{field.name: lines[f"SERVERS_{field.name.upper()}"] for field in fields(Passwords)})
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no passwords yet. Run: make servers") from error
    except KeyError as error:
        raise UserError(f"{path} has no line {error.args[0]}=; the servers of {folder} were set up with one") from error


@dataclass(frozen=True)
class Server:
    name: str
    command: list[str]
    env: dict[str, str]
    is_up: Callable[[], bool]
    user: str | None = None


def servers(settings: Settings, passwords: Passwords) -> list[Server]:
    """All four, each after those that it needs."""
    makers = (_postgres, _s3, _mlflow, _prefect)
    return [make(settings, passwords) for make in makers]


def _postgres(settings: Settings, passwords: Passwords) -> Server:
    command = [f"{database.programs()}/postgres", "-D", str(settings.folder / "postgres" / "data")]
    for name, value in {"port": settings.postgres_port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}.items():
        command += ["-c", f"{name}={value}"]

    def is_up() -> bool:
        return database.sql(settings.postgres_port, passwords.postgres_password, "select 1").returncode == 0

    return Server("postgres", command, environment(), is_up, user=database.user())


def _s3(settings: Settings, passwords: Passwords) -> Server:
    folder = settings.folder / "s3"
    command = [sys.executable, "-m", "flows.store", "--folder", str(folder), "--port", str(settings.s3_port)]
    return Server("s3", command, environment(**_s3_keys(passwords)), lambda: (folder / "ready").is_file())


def _mlflow(settings: Settings, passwords: Passwords) -> Server:
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
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command += ["--app-name", "basic-auth", "--artifacts-destination", "s3://mlflow", "--allowed-hosts", hosts]
    command += ["--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts.split(","))]
    return Server("mlflow", command, env, lambda: _answers(f"http://127.0.0.1:{port}/health"))


def _prefect(settings: Settings, passwords: Passwords) -> Server:
    port = settings.prefect_port
    env = environment(
        PREFECT_HOME=str(settings.folder / "prefect"),
        PREFECT_API_DATABASE_CONNECTION_URL=_database(settings, passwords, "postgresql+asyncpg", "prefect"),
        PREFECT_SERVER_API_AUTH_STRING=f"{USER}:{passwords.prefect_password}",
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS=f"http://127.0.0.1:{port},http://localhost:{port}",
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return Server("prefect", command, env, lambda: _answers(f"http://127.0.0.1:{port}/api/health"))


def mlflow_auth(settings: Settings, passwords: Passwords) -> str:
    """MLflow's auth.ini: its users in PostgreSQL; a new user sees nothing until it is allowed to.

    A password that was right is remembered for some minutes: to check it anew takes 0.3 s, and a rollback asks twenty times.
    """
    return (
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\nauth_cache_ttl_seconds = 300\nauth_cache_max_size = 1000\n"
        f"database_uri = {_database(settings, passwords, 'postgresql+psycopg2', 'mlflow_auth')}\n"
    )


def client_environment(settings: Settings, passwords: Passwords) -> dict[str, str]:
    """The variables with which runs, flows and workers find the servers and are let in.

    No key of the store is among them: MLflow hands artifacts on, and DVC has its own in .dvc/config.local.
    """
    return {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{settings.mlflow_port}",
        "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
        "MLFLOW_TRACKING_PASSWORD": passwords.mlflow_password,
        "PREFECT_API_URL": f"http://127.0.0.1:{settings.prefect_port}/api",
        "PREFECT_API_AUTH_STRING": f"{USER}:{passwords.prefect_password}",
    }


def dvc_remote(settings: Settings, passwords: Passwords) -> dict[str, str]:
    """The section of .dvc/config.local that lets DVC push to the store."""
    keys = _s3_keys(passwords)
    return {
        "url": "s3://dvc",
        "endpointurl": f"http://127.0.0.1:{settings.s3_port}",
        "access_key_id": keys["AWS_ACCESS_KEY_ID"],
        "secret_access_key": keys["AWS_SECRET_ACCESS_KEY"],
        "region": keys["AWS_DEFAULT_REGION"],
    }


def missing() -> list[str]:
    """What is not installed here, as sentences that say how to install it."""
    sentences = []
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        elsewhere = "" if sys.platform == "linux" else " (swift, the store, is for Linux; elsewhere: docker compose up)"
        sentences.append(f"the Python packages {', '.join(lacking)} are missing. Run: pip install '.[servers]'{elsewhere}")
    try:
        database.programs()
        database.user()
    except UserError as error:
        sentences.append(str(error))
    return sentences


def _database(settings: Settings, passwords: Passwords, driver: str, name: str) -> str:
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
