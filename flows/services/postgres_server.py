"""PostgreSQL from the Linux distribution: its programs, its folder, its databases. Each connection needs the password."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from thousandwords.core.errors import UserError

USER = "thousandwords"
DATABASES = ("mlflow", "mlflow_auth", "prefect")


def write_secret(path: Path, text: str) -> Path:
    """Write a file that only its owner reads."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def programs() -> Path:
    """The folder of the newest PostgreSQL. Raises UserError if there is none."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if folders:
        return max(folders, key=lambda path: float(path.parent.name))
    if (program := shutil.which("postgres")) and shutil.which("initdb"):
        return Path(program).resolve().parent
    fix = "Run: sudo apt-get install postgresql (or, with docker: docker compose up)"
    raise UserError(f"PostgreSQL is missing. {fix}")


def user() -> str | None:
    """The user of its package for root, as whom PostgreSQL does not run; None for other users."""
    if os.geteuid() != 0:
        return None
    if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        found = "PostgreSQL does not run as root, and there is no user postgres"
        raise UserError(f"{found}. Run: useradd --system postgres")
    return "postgres"


def make_folder(folder: Path, password: str) -> None:
    """Create PostgreSQL's data folder, once; under another name first, so that none is incomplete."""
    owner = user()
    closed = [parent for parent in folder.parents if owner and not parent.stat().st_mode & 0o001]
    if closed:
        raise UserError(
            f"PostgreSQL runs as user {owner}, which may not enter {closed[0]}. "
            "Set SERVERS_FOLDER to a folder elsewhere, or run this as another user than root"
        )
    if (folder / "data").is_dir():
        return
    shutil.rmtree(folder / "data.new", ignore_errors=True)
    secret = write_secret(folder / "password.tmp", password)
    for path in (folder, secret) if owner else ():
        shutil.chown(path, owner)
    command = [f"{programs()}/initdb", "-D", str(folder / "data.new"), "-U", USER, f"--pwfile={secret}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    options = {"user": owner, "extra_groups": []} if owner else {}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, **options)
    secret.unlink()
    if result.returncode:
        reason = result.stderr.strip()[-500:]
        raise UserError(f"PostgreSQL could not create its folder {folder / 'data'}: {reason}")
    (folder / "data.new").rename(folder / "data")


def make_databases(port: int, password: str) -> None:
    existing = sql(port, password, "select datname from pg_database").stdout.split()
    for name in DATABASES:
        if name not in existing:
            result = sql(port, password, f"create database {name}")
            if result.returncode:
                raise UserError(f"PostgreSQL could not create the database {name}: {result.stderr.strip()}")


def sql(port: int, password: str, statement: str, database: str = "postgres") -> subprocess.CompletedProcess:
    """psql's result of one statement, rows as plain lines."""
    options = ["-h", "127.0.0.1", "-p", str(port), "-U", USER, "-d", database, "-tAc", statement]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    env |= {"PGPASSWORD": password, "PGCONNECT_TIMEOUT": "5"}
    return subprocess.run([f"{programs()}/psql", *options], env=env, capture_output=True, text=True)
