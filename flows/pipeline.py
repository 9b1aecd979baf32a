"""python -m flows.pipeline: the DVC graph, one Prefect task per stage, branches side by side, lines in the run's log.

The graph is read from DVC at run time; a task is `dvc --wait-for-lock repro -s STAGE`. DVC alone decides what must run, so
Prefect caches nothing; a stage that fails leaves those that need it unrun.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "PREFECT_HOME": str(Path(".prefect").resolve()),  # this project's own database and settings
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 s is too short on a busy machine
    "PREFECT_LOGGING_LEVEL": "INFO",
}
for name, value in QUIET.items():
    os.environ.setdefault(name, value)  # before prefect is imported: it reads them once

from dvc.repo import Repo  # noqa: E402
from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402


def read_graph(root: str = ".") -> dict[str, list[str]]:
    """{stage: the stages it waits for}, from dvc.yaml, in an order in which they can run."""
    with Repo(root) as repo:
        graph = repo.index.graph
        needs = {node.addressing: [other.addressing for other in graph.successors(node)] for node in graph.nodes}
    ordered: dict[str, list[str]] = {}

    def visit(name: str) -> None:
        if name not in ordered:
            for other in sorted(needs[name]):
                visit(other)
            ordered[name] = sorted(needs[name])

    for name in sorted(needs):
        visit(name)
    return ordered


@task(task_run_name="{stage}")
def run_stage(stage: str) -> str:
    """One stage by DVC, its lines streamed into the log. Raises RuntimeError with the last of them when it fails."""
    log = get_run_logger()
    # no session of its own: a cancelled flow then takes the stage and its children along
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        if line.strip():
            lines.append(line.rstrip())
            log.info("%s | %s", stage, lines[-1])
    if process.wait():
        raise RuntimeError(f"stage {stage} failed with code {process.returncode}: " + " / ".join(lines[-5:]))
    return stage


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=2))
def pipeline(targets: list[str] | None = None) -> None:
    """Every stage, or those that `targets` need, each as soon as what it needs is done."""
    os.environ.setdefault("THOUSANDWORDS_PIPELINE", f"flow-{os.getpid()}-{int(time.time())}")  # one MLflow parent
    graph = read_graph()
    wanted = _needed(graph, targets) if targets else set(graph)
    running = {}
    for stage, needs in graph.items():
        if stage in wanted:
            running[stage] = run_stage.submit(stage, wait_for=[running[other] for other in needs])
    for future in running.values():
        future.result()


def _needed(graph: dict[str, list[str]], targets: list[str]) -> set[str]:
    unknown = [name for name in targets if name not in graph]
    if unknown:
        raise ValueError(f"dvc.yaml has no stage {unknown[0]!r}. It has: {', '.join(graph)}")
    wanted, open_names = set(), list(targets)
    while open_names:
        name = open_names.pop()
        if name not in wanted:
            wanted.add(name)
            open_names += graph[name]
    return wanted


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    try:
        pipeline(parser.parse_args(argv).stages or None)
    except (RuntimeError, ValueError) as error:
        print(f"pipeline: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
