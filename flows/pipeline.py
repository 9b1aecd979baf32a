"""python -m flows.pipeline: the DVC graph, a Prefect task per stage with something to do, side by side, lines in the run's log.

The graph is read from DVC at run time; a task is `dvc --wait-for-lock repro -s STAGE`, on the GPUs that flows/placement.yaml
gives it. DVC alone decides what must run, so Prefect caches nothing; a stage that fails leaves those that need it unrun.
"""
from __future__ import annotations

import argparse
import functools
import os
import sys
import threading
import time

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from flows._alone import alone, held_places
from flows._lifeline import end_with_worker
from flows.artifacts import show_results
from flows.graph import read_graph_when_free
from flows.keeper import kept
from flows.placement import Place, read_placement
from flows.repro import CACHED, RAN, StageFailed, StageRefused, command, failure, has_waited_for_others, is_skipped, stream
from thousandwords.errors import UserError


def may_pass(task_: object, run: object, state: State) -> bool:
    """Whether a failed stage is worth another try."""
    return not isinstance(state.result(raise_on_failure=False), StageRefused)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def run_stage(stage: str, is_stale: bool, gpus: int, parallel: int, before: list[str]) -> str:
    """One stage by DVC, its lines streamed into the log; "unchanged" or "ran". Raises StageFailed with the last lines."""
    log = get_run_logger()
    if not is_stale and RAN not in before:
        log.info("%s | unchanged", stage)
        return CACHED
    words = kept(command(stage), gpus, stage)  # no session of its own, so that whoever cancels the flow reaches it
    with places(parallel):
        code, lines = stream(words, lambda line: log.info("%s | %s", stage, line), held_places())
        while code and has_waited_for_others("\n".join(lines), log.info):
            code, lines = stream(words, lambda line: log.info("%s | %s", stage, line), held_places())
    if code:
        raise failure(stage, code, lines)
    return CACHED if is_skipped(stage, lines) else RAN


@functools.cache
def places(parallel: int) -> threading.BoundedSemaphore:
    """How many stages may be at work in this process; those that wait for others are not."""
    return threading.BoundedSemaphore(parallel)


@flow(name="pipeline")
def pipeline(targets: list[str] | None = None) -> dict[str, str]:
    """Every stage, or those that `targets` need, each as soon as what it needs is done: {stage: "ran" or "unchanged"}."""
    end_with_worker()
    with alone(get_run_logger().info):
        return run_graph(targets)


def run_graph(targets: list[str] | None) -> dict[str, str]:
    """The flow without its surroundings."""
    os.environ.setdefault("THOUSANDWORDS_PIPELINE", f"flow-{os.getpid()}-{int(time.time())}")  # one MLflow parent
    whole = read_graph_when_free(get_run_logger().info)
    graph = whole.part(targets) if targets else whole
    placement = read_placement(list(whole.needs))
    running: dict[str, PrefectFuture] = {}
    for stage, needs in graph.needs.items():
        before = [running[other] for other in needs if other in running]
        if stage not in graph.stale and not before:
            get_run_logger().info("%s | %s", stage, CACHED)  # a task of its own would cost more time than it is worth
            continue
        place = placement.of(stage)
        running[stage] = placed(stage, place).submit(stage, stage in graph.stale, place.gpus, placement.parallel, before)
    done = {**dict.fromkeys(graph.needs, CACHED), **outcome(running)}
    if RAN in done.values():
        show_results()
    return done


def outcome(running: dict[str, PrefectFuture]) -> dict[str, str]:
    """What became of each stage, once all have ended: one that fails does not stop a branch that can do without it."""
    for future in running.values():
        future.wait()
    failed = [future.result(raise_on_failure=False) for future in running.values() if future.state.is_failed()]
    if failed:
        raise RuntimeError("; ".join(str(error) for error in failed if isinstance(error, StageFailed)) or str(failed[0]))
    return {stage: future.result() for stage, future in running.items()}


def placed(stage: str, place: Place):
    """The task with the name and the retries of its stage."""
    return run_stage.with_options(name=stage, retries=place.retries, retry_delay_seconds=place.delays)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    try:
        pipeline(parser.parse_args(argv).stages or None)
    except (RuntimeError, UserError) as error:
        print(f"pipeline: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
