"""A PostgreSQL of the tests' own: where several clients write at once, Prefect on SQLite answers "database is locked"."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.services import postgres_server
from tests.helpers.prefect_server import end, free_port, wait_for
from thousandwords.core.errors import UserError

PASSWORD = "test"


@contextmanager
def postgres() -> Iterator[str]:
    """The address of its database for Prefect. The test skips where PostgreSQL is missing."""
    try:
        programs, user = postgres_server.programs(), postgres_server.user()
    except UserError as error:
        pytest.skip(str(error))
    # not tmp_path: user postgres may not enter its parents
    folder, port = Path(tempfile.mkdtemp(prefix="postgres-")), free_port()
    folder.chmod(0o711)
    postgres_server.make_folder(folder, PASSWORD)
    options = ["-D", f"{folder}/data", "-p", str(port), "-k", "", "-c", "fsync=off"]
    process = subprocess.Popen(
        [f"{programs}/postgres", *options],
        user=user,
        extra_groups=[] if user else None,
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: postgres_server.sql(port, PASSWORD, "create database prefect").returncode == 0, 60)
        yield f"postgresql+asyncpg://{postgres_server.USER}:{PASSWORD}@127.0.0.1:{port}/prefect"
    finally:
        end(process)
        shutil.rmtree(folder)
