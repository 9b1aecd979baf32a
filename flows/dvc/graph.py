"""What DVC knows: the graph of the stages, and which of them are up to date."""
from __future__ import annotations

from dataclasses import dataclass

from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

from flows.repair import repair
from flows.repro import Tell, has_waited_for_others
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
    repair(wait=True)
    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):  # one lock, or DVC would read all of it twice
        graph = repo.index.graph
        needs = {node.addressing: [other.addressing for other in graph.successors(node)] for node in graph.nodes}
        return Graph(ordered(needs), frozenset(repo.status()))


def read_graph_when_free(tell: Tell) -> Graph:
    """The graph, once no other `dvc` has any of its stages in hand."""
    while True:
        try:
            return read_graph()
        except LockError as error:
            if not has_waited_for_others(str(error), tell):
                raise


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
