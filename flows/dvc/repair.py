"""python -m flows.repair: takes out of the way what a `dvc` that was killed left in this folder, and nothing that is somebody's.

DVC stops for ever at a half-written list of locks or dvc.lock, takes a process that got a dead one's number for its owner, and
fails beside a lock of git's index. Flows do this by themselves, `make run` by this command; a plain `dvc repro` does not.
"""
from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import zc.lockfile
from dvc.lock import make_lock

from thousandwords.errors import UserError

STAMP = "%Y%m%d-%H%M%S"
PROGRAMS = {"dvc", "prefect.engine", "prefect.flow_engine"}  # what takes locks in DVC's list, and all of flows/


def repair(root: Path = Path("."), wait: bool = False) -> list[str]:
    """Mends what it can; a line for each thing. Does nothing while a `dvc` writes here, or waits for its end with `wait`.

    Raises UserError where somebody has to mend it: a dvc.lock with the marks of a merge in it.
    """
    tmp = root / ".dvc" / "tmp"
    if not tmp.is_dir():
        return []
    try:
        with _alone(str(tmp / "lock"), wait):
            return [*repair_locks(root), *_repair_lock_file(root), *_repair_index(root)]
    except zc.lockfile.LockError:
        return []


def _alone(path: str, wait: bool) -> contextlib.AbstractContextManager:
    """The lock that whoever writes dvc.lock holds; DVC's own way to it would try for three seconds before it gives up."""
    return make_lock(path, wait=True) if wait else contextlib.closing(zc.lockfile.LockFile(path))


def repair_locks(root: Path = Path(".")) -> list[str]:
    """Takes the entries of the dead out of DVC's list of who reads and writes what, or the list where it is half-written."""
    path = root / ".dvc" / "tmp" / "rwlock"
    guard = make_lock(str(path.with_name("rwlock.lock")), tmp_dir=str(path.parent), wait=True)
    with guard, contextlib.suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8", errors="replace")
        kept = _living(text, root)
        if kept is None:
            path.unlink()
        elif kept != {"write": {}, "read": {}, **json.loads(text)}:
            path.write_text(json.dumps(kept), encoding="utf-8")
        else:
            return []
        return ["what a `dvc` that is dead had locked is free again"]
    return []


def _living(text: str, root: Path) -> dict | None:
    """The entries of the list that a living process has; None where it is no list of locks."""
    try:
        locks = json.loads(text)
        read = {place: [one for one in infos if is_owner(one["pid"], root)] for place, infos in locks.get("read", {}).items()}
        write = {place: one for place, one in locks.get("write", {}).items() if one and is_owner(one["pid"], root)}
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return {"write": write, "read": {place: infos for place, infos in read.items() if infos}}


def is_owner(pid: int, root: Path = Path(".")) -> bool:
    """Whether a process of this number can have locks of DVC here: it is a `dvc` or a flow, and works in this folder."""
    try:
        process = psutil.Process(pid)
        return _uses_dvc(process.cmdline()) and _is_at(process, root)
    except psutil.NoSuchProcess:
        return False


def _uses_dvc(words: list[str]) -> bool:
    return any(Path(word).name in PROGRAMS or word.startswith("flows.") for word in words)


def _is_at(process: psutil.Process, folder: Path) -> bool:
    """Whether the process works in the folder or below; of another user's one cannot know, so it may."""
    try:
        return Path(process.cwd()).is_relative_to(folder.resolve())
    except psutil.AccessDenied:
        return True


def wait_for(pids: list[int], root: Path = Path(".")) -> None:
    """Returns once none of them can have locks of DVC here any more."""
    while any(is_owner(pid, root) for pid in pids):
        time.sleep(0.5)


def _repair_lock_file(root: Path) -> list[str]:
    """Sets a half-written dvc.lock aside: what it named is in the cache, and DVC finds it there without running anything."""
    path = root / "dvc.lock"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if text is None or _is_lock_file(text):
        return []
    if "<<<<<<<" in text:
        raise UserError(f"{path} holds the marks of a merge (<<<<<<<). Take one side: git checkout --theirs dvc.lock")
    aside = root / ".dvc" / "tmp" / f"dvc.lock.{time.strftime(STAMP)}"
    path.replace(aside)
    return [f"dvc.lock was half-written: it is now {aside}, and stages that were done are taken from the cache"]


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
    """Removes the lock of git's index where no git and no dvc works here: DVC adds to the index what it writes."""
    asked = ["git", "rev-parse", "--path-format=absolute", "--git-path", "index.lock", "--show-toplevel"]
    done = subprocess.run(asked, cwd=root, capture_output=True, text=True)
    if done.returncode:
        return []
    lock, top = (Path(line) for line in done.stdout.splitlines())
    if not lock.exists() or _works_in(top):
        return []
    lock.unlink(missing_ok=True)
    return [f"{lock} was nobody's and is removed"]


def _works_in(top: Path) -> bool:
    """Whether another process of git or DVC works in this tree."""
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            is_one = process.name().startswith("git") or _uses_dvc(process.cmdline())
            if process.pid not in own and is_one and _is_at(process, top):
                return True
    return False


def main() -> None:
    try:
        for line in repair():
            print(f"repair: {line}")
    except UserError as error:
        print(f"repair: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
