"""The stage graph of dvc.yaml, which stages are out of date, and an order in which they can run."""

from __future__ import annotations

import graphlib
import re
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

from flows.dvc.git import NO_REPOSITORY
from flows.dvc.init_models import discard_outdated_inits
from flows.dvc.repair import repair
from flows.dvc.repro import Log, wait_if_busy
from thousandwords.core.errors import UserError
from thousandwords.core.params import flatten, read_params

GRAPH, PARAMS = Path("dvc.yaml"), Path("params.yaml")


@dataclass(frozen=True)
class Graph:
    """`needs` is {stage: those it depends on}, in an order in which they can run; `stale` the outdated."""

    needs: dict[str, list[str]]
    stale: frozenset[str]

    def part(self, targets: list[str] | None) -> Graph:
        """The targets and all stages they need (default: all); raises UserError for an unknown stage."""
        unknown = [name for name in targets or () if name not in self.needs]
        if unknown:
            raise UserError(f"dvc.yaml has no stage {unknown[0]!r}. It has: {', '.join(self.needs)}")
        selected, queue = set(), list(targets or self.needs)
        while queue:
            name = queue.pop()
            if name not in selected:
                selected.add(name)
                queue += self.needs[name]
        return Graph(
            {name: self.needs[name] for name in self.needs if name in selected}, self.stale & selected
        )


def read_graph() -> Graph:
    """Read dvc.yaml, once no other `dvc` writes here. Raises UserError for a file that cannot be read."""
    text = GRAPH.read_text(encoding="utf-8") if GRAPH.is_file() else ""
    if PARAMS.is_file() or "${" in text:
        check_watched(text, read_params(PARAMS))  # DVC would end with a traceback
    repair(wait=True)
    if PARAMS.is_file():
        discard_outdated_inits(read_params(PARAMS))
    try:
        # one lock, or DVC would read all of it twice
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            graph = repo.index.graph
            needs = {
                stage.addressing: [each.addressing for each in graph.successors(stage)] for stage in graph
            }
            return Graph(topological_order(needs), frozenset(repo.status()))
    except LockError:
        raise
    except DvcException as error:
        if "not a git repository" in str(error):
            raise UserError(NO_REPOSITORY) from error
        raise UserError(f"DVC cannot read this project: {' '.join(str(error).split())}") from error


def check_watched(graph: str, params: dict) -> None:
    """Raise UserError if a setting that names a dependency in dvc.yaml is null or absent."""
    values = flatten(params)
    for name in re.findall(r"\$\{(\w[\w.]*)\}", graph):
        if values.get(name) is None:
            found = f"params.yaml: {name} is null or absent, but dvc.yaml watches what it names"
            raise UserError(f"{found}. Set it, as presets/default.yaml does")


def read_graph_when_free(log: Log) -> Graph:
    """Read the graph, as soon as no other `dvc` runs one of its stages."""
    while True:
        try:
            return read_graph()
        except LockError as error:
            if not wait_if_busy(str(error), log):
                raise


def topological_order(needs: dict[str, list[str]]) -> dict[str, list[str]]:
    """Sort stages so that each comes after all it needs: {"b": ["a"], "a": []} -> {"a": [], "b": ["a"]}"""
    order = graphlib.TopologicalSorter({name: sorted(needs[name]) for name in sorted(needs)}).static_order()
    return {name: sorted(needs[name]) for name in order}
