"""What the library leaves to a clone of the project: the registry, the pipeline and the studio are no part of it."""

import subprocess
import sys
from pathlib import Path

from thousandwords.core.errors import UserError
from thousandwords.core.init_models import REGISTERED

FETCHED = ".store/registry"  # that of flows.registry; may be deleted at any time


def fetch_registered(uri: str) -> Path:
    """The folder of a package in the MLflow registry, fetched and verified by the clone that this process runs in."""
    match = REGISTERED.fullmatch(uri)
    if not match:
        raise UserError(
            f"{uri} names no package of the registry. Give models:/thousandwords@champion (or another alias), or "
            "models:/thousandwords/3 (its number)"
        )
    command = ["-m", "flows.registry", "fetch", match[1]]
    check_clone(uri, f"python {' '.join(command)}; then load the folder that it prints")
    done = subprocess.run([sys.executable, *command, "--out", FETCHED], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no reason is known"])[-1]
        raise UserError(f"{uri} was not fetched: {reason.removeprefix('registry: ')}")
    return Path(done.stdout.splitlines()[-1])


def check_clone(what: str, fix: str) -> None:
    """Raise UserError unless this process runs in a clone of the project: the pipeline is no part of the library."""
    if not (Path("dvc.yaml").is_file() and Path("flows").is_dir()):
        raise UserError(
            f"{what} needs a clone of thousandwords, but {Path.cwd()} is none. In a clone run: {fix}"
        )
