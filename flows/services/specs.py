"""The servers: MLflow and Prefect with SQLite, or those of a team, with PostgreSQL and an S3 store.

Settings, passwords, and the one file from which supervisord runs them. Passwords are passed by environment and
by files of mode 600, never on a command line, which any user can read.
"""

import importlib.util
import os
import secrets
import sys
import urllib.request
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from flows.services import postgres_server
from flows.services.postgres_server import USER, write_secret
from flows.templates import render
from stages.runtime.environment import VARIABLES
from thousandwords.core.errors import UserError

S3_USER = "thousandwords:team"
MLFLOW_USER = "admin"
PACKAGES = ("supervisor", "mlflow", "flask_wtf", "prefect")
TEAM_PACKAGES = ("swift", "boto3", "dvc_s3", "psycopg2", "asyncpg")
MARK = "THOUSANDWORDS_SERVERS"  # the folder of the servers, in the environment of each of their processes
CLIENT_PREFIXES = ("AWS_", "MLFLOW_", "PREFECT_", "PG", "SERVERS_")  # client settings are not for the servers


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
            variable = f"SERVERS_{name.upper()}_PORT"
            if not 1024 <= port <= 65535:
                raise UserError(f"{variable} is {port}; ports from 1024 to 65535 can be used")
            if port in owners:
                raise UserError(f"{variable} and {owners[port]} are both {port}; change one")
            owners[port] = variable

    def ports(self) -> dict[str, int]:
        """{server: its port}, in the order of their start."""
        names = ("postgres", "s3", "mlflow", "prefect") if self.is_team else ("mlflow", "prefect")
        return {name: getattr(self, f"{name}_port") for name in names}


def socket_file(folder: Path) -> Path:
    return folder / "supervisor.sock"  # where the folder's supervisord answers


def read_settings(environ: dict[str, str]) -> ServicesConfig:
    """Settings from SERVERS_FOLDER, SERVERS_MLFLOW_PORT and so on. Raises UserError for an invalid port."""
    folder = Path(environ.get("SERVERS_FOLDER") or ServicesConfig.folder).resolve()
    ports = {}
    for name in ("postgres_port", "s3_port", "mlflow_port", "prefect_port"):
        if text := environ.get(f"SERVERS_{name.upper()}"):
            if not text.isdecimal():
                raise UserError(f"SERVERS_{name.upper()} is {text!r}; it must be a port number")
            ports[name] = int(text)
    return ServicesConfig(folder, **ports, is_team=(folder / "postgres" / "data").is_dir())


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
        write_secret(path.with_suffix(".tmp"), "".join(lines)).rename(path)
    return read_passwords(folder)


def read_passwords(folder: Path) -> Passwords:
    """Read the passwords; raises UserError if no server was ever started here."""
    path = password_file(folder)
    try:
        lines = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
        return Passwords(*(lines[f"SERVERS_{field.name.upper()}"] for field in fields(Passwords)))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no passwords yet. Run: make servers") from error
    except KeyError as error:
        found = f"{path} has no line {error.args[0]}="
        raise UserError(f"{found}; the servers of {folder} were set up with one") from error


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without client settings. The project stays importable from any folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(CLIENT_PREFIXES)}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))
    return {**inherited, **VARIABLES, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def supervisor_file(settings: ServicesConfig, passwords: Passwords) -> str:
    text = render(
        Path(__file__).with_name("supervisord.conf.j2"),
        settings=settings,
        folder=settings.folder,
        passwords=passwords,
        python=sys.executable,
        is_root=os.geteuid() == 0,
        postgres=postgres_server,
        database=partial(_database, settings, passwords),
        s3_keys=_s3_keys(passwords),
        mlflow_user=MLFLOW_USER,
        prefect_login=_prefect_login(passwords),
    )
    return text.replace("%", "%%")


def is_up(name: str, settings: ServicesConfig, passwords: Passwords) -> bool:
    if name == "postgres":
        answer = postgres_server.sql(settings.postgres_port, passwords.postgres_password, "select 1")
        return answer.returncode == 0
    if name == "s3":
        return (settings.folder / "s3" / "ready").is_file()
    path = {"mlflow": "health", "prefect": "api/health"}[name]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.ports()[name]}/{path}", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def mlflow_auth(settings: ServicesConfig, passwords: Passwords) -> str:
    """MLflow's auth.ini: users are in a database; a new user has no permissions."""
    return (  # a correct password is cached: a check takes 0.3 s, and a rollback sends twenty requests
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\nauth_cache_ttl_seconds = 300\nauth_cache_max_size = 1000\n"
        f"database_uri = {_database(settings, passwords, 'postgresql+psycopg2', 'mlflow_auth')}\n"
    )


def client_environment(settings: ServicesConfig, passwords: Passwords) -> dict[str, str]:
    """The variables with which clients connect. No key of the store: DVC has its own in .dvc/config.local."""
    return {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{settings.mlflow_port}",
        "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
        "MLFLOW_TRACKING_PASSWORD": passwords.mlflow_password,
        "PREFECT_API_URL": f"http://127.0.0.1:{settings.prefect_port}/api",
        "PREFECT_API_AUTH_STRING": _prefect_login(passwords),
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
        fix = "pip install '.[servers]'"
        if sys.platform != "linux":
            fix += " (the store runs on Linux only; elsewhere: docker compose up)"
        sentences.append(f"the Python packages {', '.join(packages)} are missing. Run: {fix}")
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


def _prefect_login(passwords: Passwords) -> str:
    return f"{USER}:{passwords.prefect_password}"


def _s3_keys(passwords: Passwords) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": S3_USER, "AWS_SECRET_ACCESS_KEY": passwords.s3_secret_key}
    return {**keys, "AWS_DEFAULT_REGION": "us-east-1"}
