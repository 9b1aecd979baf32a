"""python -m flows.pipeline: the DVC graph with one Prefect task per stale stage, in parallel.

The graph is read from DVC at run time; a task is `dvc --wait-for-lock repro -s STAGE`, on the GPUs that
flows/workers/placement.yaml assigns. DVC alone decides what must run, so Prefect caches nothing; if a stage
fails, the stages that need it do not run.
"""

import functools
import os
import time
from collections.abc import Callable

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.command_line import one_sentence, parse_targets
from flows.dvc import repro
from flows.dvc.graph import read_graph_when_free, run_graph
from flows.prefect_artifacts import publish_results
from flows.run_name import run_name
from flows.workers.placement import read_placement
from flows.workers.run_lock import lock_handles, run_lock
from flows.workers.supervisor import supervised
from thousandwords.core.files import check_writable


def unless(error: type[Exception]) -> Callable[[object, object, State], bool]:
    """A condition for retries: every failure but this one."""
    return lambda task_, run, state: not isinstance(state.result(raise_on_failure=False), error)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=unless(repro.PermanentStageFailure))
def run_stage(stage: str, gpus: int) -> str:
    """Run one stage with DVC, its output in the log; "unchanged" or "ran". Raises StageFailed."""
    log = get_run_logger().info
    # no session of its own, so that the cancellation of the flow reaches it
    command = supervised(repro.repro_command(stage), gpus, stage)
    on_line = functools.partial(log, "%s | %s", stage)
    return repro.run_stage(stage, on_line, log, command, pass_fds=lock_handles())


@flow(name="pipeline", flow_run_name=run_name)
def pipeline(targets: list[str] | None = None) -> dict[str, str]:
    """Run all stages, or `targets` and what they need, in parallel: {stage: "ran" or "unchanged"}."""
    log = get_run_logger().info
    with run_lock(log):
        # one MLflow parent run for all stages
        os.environ.setdefault("THOUSANDWORDS_PIPELINE", f"flow-{os.getpid()}-{int(time.time())}")
        address = str(flow_run.ui_url)  # "None/..." of a server that runs for this flow only
        os.environ["THOUSANDWORDS_FLOW_RUN"] = address if address.startswith("http") else ""
        whole = read_graph_when_free(log)
        placement, graph = read_placement(list(whole.needs)), whole.part(targets)
        states: dict[str, State] = {}

        def run_with_retries(stage: str) -> str:
            place = placement.of(stage)
            task_of_stage = run_stage.with_options(name=stage, **place.retry_options)
            # edges in Prefect's graph, from the nearest stages before this one that ran
            before = [states[name] for name in graph.nearest(stage, [*states])]
            state = task_of_stage(stage, place.gpus, return_state=True, wait_for=before)
            result = state.result()
            states[stage] = state
            return result

        results = run_graph(graph, run_with_retries, placement.parallel)
        for stage in (stage for stage, result in results.items() if result == repro.CACHED):
            log("%s | %s", stage, repro.CACHED)
        if repro.RAN in results.values():
            publish_results()
    return results


def main(argv: list[str] | None = None) -> None:
    targets = parse_targets(__doc__, argv)
    with one_sentence("pipeline"):
        check_writable()
        pipeline(targets or None)


if __name__ == "__main__":
    main()
