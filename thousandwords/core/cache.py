"""Folders known by what they were made from: made once, verified at each use, made again where damaged.

The key of an entry is a fingerprint of all that its bytes follow from, so an entry is never out of date, only forgotten. An entry
appears under its key whole or not at all. A store lies outside DVC (`.store/`), which removes a stage's outputs before it runs
the stage again, and may be deleted at any time: what is missing is made anew.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, read_manifest, sync_folder, write_json

STORE = Path(".store")
RUNS = "runs.json"


def tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


class Store:
    """The entries that the last `kept_runs` different runs have used; `begin` a run with all its keys, then `get` each."""

    def __init__(self, folder: Path, kept_runs: int = 4, tell: Callable[[str], None] = tell) -> None:
        self.folder, self.kept_runs, self.tell = Path(folder), kept_runs, tell

    def begin(self, keys: Sequence[str]) -> None:
        """Notes what this run will use, and removes what none of the last runs has used.

        Before the run and not after it: a run that is killed has its finished entries kept.
        """
        with self._alone():
            earlier = [run for run in self._runs() if run != sorted(keys)]
            runs = [*earlier, sorted(keys)][-self.kept_runs :]
            write_json(self.folder / RUNS, runs)
            kept = {key for run in runs for key in run}
            for entry in self.folder.iterdir():
                if entry.is_dir() and entry.name not in kept:
                    shutil.rmtree(entry)

    def get(self, key: str, make: Callable[[Path], None]) -> Path:
        """The entry `key`, verified; if it is missing or damaged, `make(folder)` writes it, with a manifest, beforehand.

        Of several processes one makes it and the others wait.
        """
        entry = self.folder / key
        with self._alone():
            if entry.exists() and not self._is_whole(entry):
                shutil.rmtree(entry)
            if not entry.exists():
                self._make(entry, make)
        return entry

    def has(self, key: str) -> bool:
        """Whether there is an entry, whole or not."""
        return (self.folder / key).exists()

    def check_room(self, needed: int, what: str) -> None:
        """Tells that `what` will be written here, unpacked, once; UserError if there is no room for that many bytes."""
        free = shutil.disk_usage(self.folder).free
        told = f"{what} are more than fits memory; unpacked they take {needed / 1e9:.1f} GB"
        if free < needed:
            raise UserError(f"{told}, but {self.folder} has {free / 1e9:.1f} GB free. Make room there")
        self.tell(f"store: {told} in {self.folder}, written once")

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

    def _is_whole(self, entry: Path) -> bool:
        try:
            read_manifest(entry, mend="nothing; it is made again")
        except DamagedArtefact as error:
            self.tell(f"store: {error}")
            return False
        return True

    def _runs(self) -> list[list[str]]:
        try:
            return json.loads((self.folder / RUNS).read_bytes())
        except (OSError, ValueError):
            return []  # only a note of what to keep: without it what is missing is made again

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time; a kernel lock, freed by death."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
