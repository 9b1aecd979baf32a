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

from flows.command_line import one_sentence
from thousandwords.core.errors import UserError
from thousandwords.core.files import translate_write_errors

TIMESTAMP = "%Y%m%d-%H%M%S"
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
            return [*_repair_locks(root), *_repair_lock_file(root), *_repair_index(root)]
    except zc.lockfile.LockError:
        return []


def _repair_locks(root: Path) -> list[str]:
    """Remove entries of dead processes from DVC's list of readers and writers, or a half-written list."""
    path = root / ".dvc" / "tmp" / "rwlock"
    list_lock = make_lock(str(path.with_name("rwlock.lock")), tmp_dir=str(path.parent), wait=True)
    with list_lock:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else "{}"
        entries = _live_entries(text, root)
        if entries is None:
            path.unlink()
        elif entries != {"write": {}, "read": {}, **json.loads(text)}:
            path.write_text(json.dumps(entries), encoding="utf-8")
        else:
            return []
    return ["what a dead `dvc` had locked is free again"]


def _live_entries(text: str, root: Path) -> dict | None:
    """The entries of the list whose process lives; None if the text is not a list of locks."""
    try:
        locks = json.loads(text)
        read = {
            path: [entry for entry in entries if can_hold_locks(entry["pid"], root)]
            for path, entries in locks.get("read", {}).items()
        }
        write = {
            path: entry
            for path, entry in locks.get("write", {}).items()
            if entry and can_hold_locks(entry["pid"], root)
        }
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return {"write": write, "read": {path: entries for path, entries in read.items() if entries}}


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


def wait_for_processes(pids: list[int], root: Path = Path(".")) -> None:
    """Return as soon as none of them can hold DVC's locks here."""
    while any(can_hold_locks(pid, root) for pid in pids):
        time.sleep(0.5)


def _repair_lock_file(root: Path) -> list[str]:
    """Move a half-written dvc.lock away: DVC finds its outputs in the cache without running anything."""
    path = root / "dvc.lock"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if text is None or _is_lock_file(text):
        return []
    if "<<<<<<<" in text:
        raise UserError(
            f"{path} has merge conflict markers (<<<<<<<). Take one side: git checkout --theirs dvc.lock"
        )
    backup = root / ".dvc" / "tmp" / f"dvc.lock.{time.strftime(TIMESTAMP)}"
    path.replace(backup)
    return [f"dvc.lock was half-written: it is now {backup}, and finished stages are taken from the cache"]


def _is_lock_file(text: str) -> bool:
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import ParseError, parse_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(text, "dvc.lock"))
    except (Invalid, ParseError, DvcException):
        return False
    return True


def _repair_index(root: Path) -> list[str]:
    """Remove the lock of git's index if no git and no dvc runs here: DVC adds its outputs to the index."""
    command = ["git", "rev-parse", "--path-format=absolute", "--git-path", "index.lock", "--show-toplevel"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if result.returncode:
        return []
    lock, top = (Path(line) for line in result.stdout.splitlines())
    if not lock.exists() or _is_in_use(top):
        return []
    lock.unlink(missing_ok=True)
    return [f"{lock} belonged to no process and is removed"]


def _is_in_use(top: Path) -> bool:
    """Whether another process of git or DVC runs in this tree."""
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            uses_index = process.name().startswith("git") or _uses_dvc(process)
            if process.pid not in own and uses_index and _runs_in(process, top):
                return True
    return False


def main() -> None:
    with one_sentence("repair"):
        for line in repair():
            print(f"repair: {line}")


if __name__ == "__main__":
    main()
