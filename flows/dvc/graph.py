"""The stage graph of dvc.yaml: which stages are out of date, and how they run, each as soon as what it needs is done."""

from __future__ import annotations

import contextvars
import graphlib
import re
import threading
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

from flows.dvc.git import NO_REPOSITORY
from flows.dvc.init_models import discard_outdated_inits
from flows.dvc.repair import repair
from flows.dvc.repro import CACHED, RAN, Log, StageFailed, wait_if_busy
from thousandwords.core.errors import UserError
from thousandwords.core.params import flatten, read_params

PATIENCE = 15.0  # seconds for the running stages to end, once the run is stopped
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
        needs = {name: others for name, others in self.needs.items() if name in selected}
        return Graph(needs, self.stale & selected)

    def nearest(self, stage: str, others: Collection[str]) -> list[str]:
        """Those of the others that the stage needs, without what these need: the edges of a graph that can be read."""
        above = {name: self.part([name]).needs.keys() - {name} for name in (*others, stage)}
        needed = [name for name in others if name in above[stage]]
        return [name for name in needed if not any(name in above[other] for other in needed)]


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
            needs = {node.addressing: [each.addressing for each in graph.successors(node)] for node in graph}
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


def run_graph(
    graph: Graph,
    run_stage: Callable[[str], str],
    parallel: int,
    stop: Callable[[], object] = lambda: None,
    fail_fast: bool = False,
) -> dict[str, str]:
    """{stage: RAN or CACHED} in the order of the graph, by at most `parallel` calls of `run_stage` at a time, in threads.

    With `fail_fast` the first error ends the run, after `stop`; else all stages that do not need a failed one
    run first, and RuntimeError names every failure.
    """
    results: dict[str, str] = {}
    running: dict[Future, str] = {}
    failed: dict[str, BaseException] = {}
    try:
        while True:
            for stage, needs in graph.needs.items():
                if stage in results or not all(other in results for other in needs):
                    continue
                if stage not in graph.stale and RAN not in [results[other] for other in needs]:
                    results[stage] = CACHED
                elif stage not in failed and stage not in running.values() and len(running) < parallel:
                    running[_in_thread(run_stage, stage)] = stage
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, error = running.pop(future), future.exception()
                if error and fail_fast:
                    raise error
                (failed if error else results)[stage] = error or future.result()
    except BaseException:
        stop()
        wait(running, PATIENCE)
        raise
    if failed:
        errors = [error for error in failed.values() if isinstance(error, StageFailed)]
        raise RuntimeError("; ".join(map(str, errors or failed.values())))
    return {stage: results[stage] for stage in graph.needs}


def _in_thread(function: Callable[[str], str], stage: str) -> Future:
    """The result of a call in a thread with this one's context, which keeps no process alive."""
    future: Future = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function, stage))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
