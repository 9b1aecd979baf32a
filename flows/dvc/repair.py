"""python -m flows.dvc.repair: removes what a killed `dvc` left behind, and nothing that a live process uses.

DVC stops for ever at a half-written lock list or dvc.lock, takes a process that reuses a dead process's
number for the owner of its locks, and fails beside a leftover lock of git's index. Flows and `make run` call
this; a plain `dvc repro` does not.
"""

import contextlib
import json
import subprocess
import time
from pathlib import Path

import psutil
import zc.lockfile
from dvc.lock import make_lock
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA, Invalid

from flows.command_line import one_sentence
from thousandwords.core.errors import UserError
from thousandwords.core.files import translate_write_errors

PROGRAMS = {"dvc", "prefect.engine", "prefect.flow_engine"}  # take locks in DVC's list, as do all of flows/


def repair(root: Path = Path("."), wait: bool = False) -> list[str]:
    """Fix what can be fixed; one line for each fix.

    While a `dvc` writes here, do nothing, or wait for it with `wait`. Raises UserError for what the user has
    to fix: a dvc.lock with merge conflict markers, a folder that cannot be written.
    """
    tmp = root / ".dvc" / "tmp"
    if not tmp.is_dir():
        return []
    path = str(tmp / "lock")  # of the process that writes dvc.lock
    try:
        with (
            translate_write_errors(tmp),
            # DVC's own call would try for three seconds, also without `wait`
            make_lock(path, wait=True) if wait else contextlib.closing(zc.lockfile.LockFile(path)),
        ):
            return [
                *_repair_locks(tmp, root),
                *_repair_lock_file(root / "dvc.lock", tmp),
                *_repair_index(root),
            ]
    except zc.lockfile.LockError:
        return []


def _repair_locks(tmp: Path, root: Path) -> list[str]:
    """Remove entries of dead processes from DVC's list of readers and writers, or a half-written list."""
    path = tmp / RWLOCK_FILE
    with make_lock(str(tmp / RWLOCK_LOCK), tmp_dir=str(tmp), wait=True):
        if not path.exists():
            return []
        try:
            locks = SCHEMA(json.loads(path.read_text(encoding="utf-8", errors="replace")))
        except (ValueError, Invalid):
            path.unlink()
        else:
            live: dict[str, dict] = {"write": {}, "read": {}}
            for name, entry in locks["write"].items():
                if can_hold_locks(entry["pid"], root):
                    live["write"][name] = entry
            for name, entries in locks["read"].items():
                if readers := [entry for entry in entries if can_hold_locks(entry["pid"], root)]:
                    live["read"][name] = readers
            if locks == live:
                return []
            path.write_text(json.dumps(live), encoding="utf-8")
    return ["what a dead `dvc` had locked is free again"]


def can_hold_locks(pid: int, root: Path = Path(".")) -> bool:
    """Whether this process can hold DVC's locks here: it is a `dvc` or a flow and runs in this folder."""
    try:
        process = psutil.Process(pid)
        return _uses_dvc(process) and _runs_in(process, root)
    except psutil.NoSuchProcess:
        return False


def _uses_dvc(process: psutil.Process) -> bool:
    return any(Path(word).name in PROGRAMS or word.startswith("flows.") for word in process.cmdline())


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    """Whether the process runs in the folder or below; True if that of another user cannot be read."""
    try:
        return Path(process.cwd()).is_relative_to(folder.resolve())
    except psutil.AccessDenied:
        return True


def _repair_lock_file(path: Path, tmp: Path) -> list[str]:
    """Move a half-written dvc.lock away: DVC finds its outputs in the cache without running anything."""
    if not path.is_file():
        return []
    from dvc.exceptions import DvcException  # late: these load all of DVC
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import ParseError, parse_yaml

    text = path.read_text(encoding="utf-8", errors="replace")
    with contextlib.suppress(Invalid, ParseError, DvcException):
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(text, "dvc.lock"))
        return []
    if "<<<<<<<" in text:
        fix = "Take one side: git checkout --theirs dvc.lock"
        raise UserError(f"{path} has merge conflict markers (<<<<<<<). {fix}")
    backup = tmp / f"dvc.lock.{time.strftime('%Y%m%d-%H%M%S')}"
    path.replace(backup)
    return [f"dvc.lock was half-written: it is now {backup}, and finished stages are taken from the cache"]


def _repair_index(root: Path) -> list[str]:
    """Remove the lock of git's index if no git and no dvc runs here: DVC adds its outputs to the index."""
    command = ["git", "rev-parse", "--path-format=absolute", "--git-path", "index.lock", "--show-toplevel"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if result.returncode:
        return []
    lock, top = (Path(line) for line in result.stdout.splitlines())
    if not lock.exists():
        return []
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            uses_index = process.name().startswith("git") or _uses_dvc(process)
            if process.pid not in own and uses_index and _runs_in(process, top):
                return []
    lock.unlink(missing_ok=True)
    return [f"{lock} belonged to no process and is removed"]


def main() -> None:
    with one_sentence("repair"):
        for line in repair():
            print(f"repair: {line}")


if __name__ == "__main__":
    main()
