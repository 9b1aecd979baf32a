"""What DVC knows: the graph of the stages, which of them are up to date, and whose locks are nobody's any more."""
from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import psutil
from dvc.lock import make_lock
from dvc.repo import Repo

from thousandwords.errors import UserError


@dataclass(frozen=True)
class Graph:
    """`needs` is {stage: the stages it waits for}, in an order in which they can run; `stale` are those with something to do."""

    needs: dict[str, list[str]]
    stale: frozenset[str]

    def part(self, targets: list[str]) -> Graph:
        """The stages that `targets` need, them too; raises UserError for one that does not exist."""
        unknown = [name for name in targets if name not in self.needs]
        if unknown:
            raise UserError(f"dvc.yaml has no stage {unknown[0]!r}. It has: {', '.join(self.needs)}")
        wanted, open_names = set(), list(targets)
        while open_names:
            name = open_names.pop()
            if name not in wanted:
                wanted.add(name)
                open_names += self.needs[name]
        return Graph({name: needs for name, needs in self.needs.items() if name in wanted}, self.stale & wanted)


def read_graph() -> Graph:
    """The graph of dvc.yaml here and what has changed; waits where another `dvc` is at work in the folder."""
    repair_locks()
    with Repo(_wait_for_lock=True) as repo:
        graph = repo.index.graph
        needs = {node.addressing: [other.addressing for other in graph.successors(node)] for node in graph.nodes}
        return Graph(ordered(needs), frozenset(repo.status()))


def ordered(needs: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same, each stage after all that it needs: {"b": ["a"], "a": []} -> {"a": [], "b": ["a"]}"""
    done: dict[str, list[str]] = {}

    def visit(name: str) -> None:
        if name not in done:
            for other in sorted(needs[name]):
                visit(other)
            done[name] = sorted(needs[name])

    for name in sorted(needs):
        visit(name)
    return done


def repair_locks(root: Path = Path(".")) -> None:
    """Takes out of DVC's list of locks what a `dvc` that was killed left there, or the list where it is half-written.

    DVC itself stops at a half-written list for ever, and takes a process that got a dead one's number for its owner.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.is_file():
        return
    guard = make_lock(str(path.with_name("rwlock.lock")), tmp_dir=str(path.parent), wait=True)
    with guard, contextlib.suppress(FileNotFoundError):
        kept = _living(path.read_text(encoding="utf-8", errors="replace"))
        if kept is None:
            path.unlink()
        else:
            path.write_text(json.dumps(kept), encoding="utf-8")


def _living(text: str) -> dict | None:
    """The entries of the list that a running `dvc` has; None where it is no list of locks."""
    try:
        locks = json.loads(text)
        read = {place: [one for one in infos if _is_dvc(one["pid"])] for place, infos in locks.get("read", {}).items()}
        write = {place: one for place, one in locks.get("write", {}).items() if one and _is_dvc(one["pid"])}
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return {"write": write, "read": {place: infos for place, infos in read.items() if infos}}


def _is_dvc(pid: int) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
