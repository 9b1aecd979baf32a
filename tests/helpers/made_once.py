"""Files that take seconds to make and are the same for every test: made once on a machine, then copied."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def copy_of(name: str, make: Callable[[Path], None], target: Path) -> None:
    """Copy the file of that name to `target`; `make` writes it if this machine does not have it yet. The name has
    the versions of what made it."""
    made = Path(tempfile.gettempdir()) / f"thousandwords-tests-{os.getuid()}-{name}"
    with FileLock(f"{made}.lock"):
        if not made.is_file():
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder) / "made")
                shutil.copy(Path(folder) / "made", f"{made}.part")
            os.replace(f"{made}.part", made)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(made, target)
