"""python -m flows.pipeline: the DVC graph with one Prefect task per stale stage, in parallel.

The graph is read from DVC at run time; a task is `dvc --wait-for-lock repro -s STAGE`, on the GPUs that
flows/workers/placement.yaml assigns. DVC alone decides what must run, so Prefect caches nothing; if a stage
fails, the stages that need it do not run.
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

from flows.dvc.graph import read_graph_when_free
from flows.dvc.repro import (
    CACHED,
    RAN,
    PermanentStageFailure,
    StageFailed,
    is_skipped,
    repro_command,
    stage_error,
    stream,
    wait_if_busy,
)
from flows.prefect_artifacts import publish_results
from flows.workers.parent_watch import end_with_worker
from flows.workers.placement import Place, read_placement
from flows.workers.run_lock import lock_handles, run_lock
from flows.workers.supervisor import supervised
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable


def is_retryable(task_: object, run: object, state: State) -> bool:
    """Whether a failed stage should be retried."""
    return not isinstance(state.result(raise_on_failure=False), PermanentStageFailure)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=is_retryable)
def run_stage(stage: str, is_stale: bool, gpus: int, parallel: int, needs: list[str]) -> str:
    """Run one stage with DVC, its output in the log; "unchanged" or "ran".

    Raises StageFailed with the last lines. `needs` are the results of the stages that it needs.
    """
    log = get_run_logger()
    if not is_stale and RAN not in needs:
        log.info("%s | unchanged", stage)
        return CACHED
    # no session of its own, so that the cancellation of the flow reaches it
    command = supervised(repro_command(stage), gpus, stage)
    with stage_slots(parallel):
        code, lines = stream(command, lambda line: log.info("%s | %s", stage, line), lock_handles())
        while code and wait_if_busy("\n".join(lines), log.info):
            code, lines = stream(command, lambda line: log.info("%s | %s", stage, line), lock_handles())
    if code:
        raise stage_error(stage, code, lines)
    return CACHED if is_skipped(stage, lines) else RAN


@functools.cache
def stage_slots(parallel: int) -> threading.BoundedSemaphore:
    """Limits how many stages run at once in this process; stages that wait for others do not count."""
    return threading.BoundedSemaphore(parallel)


@flow(name="pipeline")
def pipeline(targets: list[str] | None = None) -> dict[str, str]:
    """Run all stages, or `targets` and what they need, in parallel: {stage: "ran" or "unchanged"}."""
    end_with_worker()
    with run_lock(get_run_logger().info):
        return run_graph(targets)


def run_graph(targets: list[str] | None) -> dict[str, str]:
    """The flow without worker watch and run lock."""
    # one MLflow parent run for all stages
    os.environ.setdefault("THOUSANDWORDS_PIPELINE", f"flow-{os.getpid()}-{int(time.time())}")
    whole = read_graph_when_free(get_run_logger().info)
    graph = whole.part(targets) if targets else whole
    placement = read_placement(list(whole.needs))
    futures: dict[str, PrefectFuture] = {}
    for stage, needs in graph.needs.items():
        before = [futures[other] for other in needs if other in futures]
        if stage not in graph.stale and not before:
            get_run_logger().info(
                "%s | %s", stage, CACHED
            )  # without a task, which would take longer than this
            continue
        place = placement.of(stage)
        futures[stage] = stage_task(stage, place).submit(
            stage, stage in graph.stale, place.gpus, placement.parallel, before
        )
    results = {**dict.fromkeys(graph.needs, CACHED), **collect_results(futures)}
    if RAN in results.values():
        publish_results()
    return results


def collect_results(futures: dict[str, PrefectFuture]) -> dict[str, str]:
    """The result of each stage, after all have ended: a failed stage does not stop independent ones.

    Raises RuntimeError.
    """
    for future in futures.values():
        future.wait()
    errors = [
        future.result(raise_on_failure=False) for future in futures.values() if future.state.is_failed()
    ]
    if errors:
        raise RuntimeError(
            "; ".join(str(error) for error in errors if isinstance(error, StageFailed)) or str(errors[0])
        )
    return {stage: future.result() for stage, future in futures.items()}


def stage_task(stage: str, place: Place):
    """The task with the name and the retries of its stage."""
    return run_stage.with_options(name=stage, retries=place.retries, retry_delay_seconds=place.delays)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    targets = parser.parse_args(argv).stages or None
    try:
        check_writable()
        pipeline(targets)
    except (RuntimeError, UserError) as error:
        print(f"pipeline: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
