"""PostgreSQL from the distribution: its programs, its folder, its databases.

Whoever connects needs the password, and there is no socket file: loopback is the only way in.
"""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from flows.processes import environment
from thousandwords.errors import UserError

USER = "thousandwords"
DATABASES = ("mlflow", "mlflow_auth", "prefect")


def programs() -> Path:
    """The folder of the newest PostgreSQL. Raises UserError when there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    if (program := shutil.which("postgres")) and shutil.which("initdb"):
        return Path(program).resolve().parent
    raise UserError("PostgreSQL is missing. Run: sudo apt-get install postgresql (or, with docker: docker compose up)")


def user() -> str | None:
    """PostgreSQL refuses to be run by root: then it runs as the user that its package brings."""
    import pwd

    if os.geteuid() != 0:
        return None
    if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        raise UserError("PostgreSQL can't be run by root, and there is no user postgres. Run: useradd --system postgres")
    return "postgres"


def make_folder(folder: Path, password: str) -> None:
    """PostgreSQL's data, once: made under another name first, so that a half-made one is never taken for whole."""
    owner = user()
    _refuse_closed_parents(folder, owner)
    if (folder / "data").is_dir():
        return
    shutil.rmtree(folder / "data.new", ignore_errors=True)
    secret = folder / "password.tmp"
    secret.unlink(missing_ok=True)
    secret.touch(mode=0o600)
    secret.write_text(password)
    if owner:
        shutil.chown(folder, owner)
        shutil.chown(secret, owner)
    command = [f"{programs()}/initdb", "-D", str(folder / "data.new"), "-U", USER, f"--pwfile={secret}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    done = subprocess.run(
        command, user=owner, extra_groups=[] if owner else None, cwd=folder, env=environment(), capture_output=True, text=True
    )
    secret.unlink()
    if done.returncode:
        raise UserError(f"PostgreSQL could not make its folder {folder / 'data'}: {done.stderr.strip()[-500:]}")
    (folder / "data.new").rename(folder / "data")


def _refuse_closed_parents(folder: Path, owner: str | None) -> None:
    closed = next((parent for parent in folder.parents if owner and not parent.stat().st_mode & 0o001), None)
    if closed:
        raise UserError(
            f"PostgreSQL runs as user {owner}, who may not enter {closed}. "
            "Set SERVERS_FOLDER to a folder elsewhere, or run this as another user than root"
        )


def make_databases(port: int, password: str) -> None:
    there = sql(port, password, "select datname from pg_database").stdout.split()
    for name in DATABASES:
        if name not in there:
            done = sql(port, password, f"create database {name}")
            if done.returncode:
                raise UserError(f"PostgreSQL made no database {name}: {done.stderr.strip()}")


def sql(port: int, password: str, statement: str, database: str = "postgres") -> subprocess.CompletedProcess:
    """What psql says to one statement, rows as plain lines."""
    words = ["-h", "127.0.0.1", "-p", str(port), "-U", USER, "-d", database, "-tAc", statement]
    env = environment(PGPASSWORD=password, PGCONNECT_TIMEOUT="5")
    return subprocess.run([f"{programs()}/psql", *words], env=env, capture_output=True, text=True)
