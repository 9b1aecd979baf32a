"""A content-addressed cache of folders: made once, verified at each use, made again if damaged.

The key of an entry is a fingerprint of everything that determines its bytes, so an entry is never out of
date. A store lies outside DVC (`.store/`), because DVC removes a stage's outputs before it runs the stage
again. It may be deleted at any time.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from thousandwords.core.errors import UserError
from thousandwords.core.files import sync_folder, write_json
from thousandwords.core.locks import take_lock
from thousandwords.core.manifest import DamagedArtefact, read_manifest

STORE = Path(".store")
RUNS = "runs.json"


def log_to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Store:
    """The entries of the last `keep_runs` runs. Call `begin` with all keys of a run, then `get` for each."""

    def __init__(self, folder: Path, keep_runs: int = 4, log: Callable[[str], None] = log_to_stderr) -> None:
        self.folder, self.keep_runs, self.log = Path(folder), keep_runs, log

    def begin(self, keys: Sequence[str]) -> None:
        """Record the keys that this run will use, and remove the entries that none of the last runs used.

        This happens before the run, so that the finished entries of a killed run are kept.
        """
        with self._lock():
            earlier = [run for run in self._runs() if run != sorted(keys)]
            runs = [*earlier, sorted(keys)][-self.keep_runs :]
            write_json(self.folder / RUNS, runs)
            keys_in_use = {key for run in runs for key in run}
            for entry in self.folder.iterdir():
                if entry.is_dir() and entry.name not in keys_in_use:
                    shutil.rmtree(entry)

    def get(self, key: str, make: Callable[[Path], None]) -> Path:
        """The verified folder of entry `key`. If it is missing or damaged, `make(folder)` writes it, with a
        manifest.

        If several processes ask for the same entry, one makes it and the others wait.
        """
        entry = self.folder / key
        with self._lock():
            if entry.exists() and not self._is_intact(entry):
                shutil.rmtree(entry)
            if not entry.exists():
                self._make(entry, make)
        return entry

    def has(self, key: str) -> bool:
        """Whether the entry exists, intact or not."""
        return (self.folder / key).exists()

    def check_free_space(self, num_bytes: int, what: str) -> None:
        """Report that `what` will be unpacked here; UserError if `num_bytes` do not fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        message = f"{what} do not fit in memory; unpacked they take {num_bytes / 1e9:.1f} GB"
        if free < num_bytes:
            raise UserError(f"{message}, but {self.folder} has {free / 1e9:.1f} GB free. Make room there")
        self.log(f"store: {message} in {self.folder}, written once")

    def _make(self, entry: Path, make: Callable[[Path], None]) -> None:
        partial = entry.with_name(f".{entry.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            read_manifest(partial, verify=False)
            os.rename(partial, entry)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(self.folder)

    def _is_intact(self, entry: Path) -> bool:
        try:
            read_manifest(entry, fix="nothing; it is made again")
        except DamagedArtefact as error:
            self.log(f"store: {error}")
            return False
        return True

    def _runs(self) -> list[list[str]]:
        try:
            return json.loads((self.folder / RUNS).read_bytes())
        except (OSError, ValueError):
            return []  # the file only says what to keep: without it, missing entries are made again

    def _lock(self) -> IO[str]:
        """One process at a time."""
        return take_lock(self.folder / ".lock", wait=True)
