"""python -m flows.fleet: the pipeline over several machines, each stage on a worker with its resources.

Each worker has its own clone (flows/dvc/remote_repro.py). This is the coordinator: it submits each stage as soon as
the outputs of those it needs are pushed, and ends with all outputs here and one `dvc.lock`.
"""

import contextlib
import functools
import os
import time
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling

from flows.command_line import one_sentence, parse_targets
from flows.deploy import server_url
from flows.dvc import remote_repro
from flows.dvc.git import git
from flows.dvc.graph import read_graph, run_graph
from flows.dvc.repro import RAN, PermanentStageFailure, StageFailed, stage_error, stream
from flows.pipeline import unless
from flows.prefect_artifacts import publish_results
from flows.run_name import run_name
from flows.workers.placement import Place, read_placement
from flows.workers.run_lock import lock_handles, run_lock
from flows.workers.supervisor import supervised
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable

# the deployments of `run_here`, each on its own pool
GPU_DEPLOYMENT, CPU_DEPLOYMENT = "stage/stage-gpu", "stage/stage-cpu"
POLL_SECONDS = 1.0
RETRY_DELAYS = [2, 10, 30, 60]  # seconds, after a server that could not answer


@flow(name="stage", flow_run_name="{stage}", log_prints=True)
def run_here(stage: str, revision: str, place: dict, pipeline: str) -> list[str]:
    """Run one stage at that revision in this clone and push its outputs; the stages that had to run."""
    os.environ["THOUSANDWORDS_PIPELINE"] = pipeline  # one MLflow parent run for the stages of all workers
    resources = Place(**place)
    with run_lock(get_run_logger().info):
        options = {"name": stage, **resources.retry_options}
        return run_and_push.with_options(**options)(stage, revision, resources.gpus)


@task(cache_policy=NO_CACHE, retry_condition_fn=unless(PermanentStageFailure), log_prints=True)
def run_and_push(stage: str, revision: str, gpus: int) -> list[str]:
    """The same without retries. Raises PermanentStageFailure for what a user has to fix, else StageFailed."""
    log = get_run_logger().info

    def repro(*command: str) -> list[str]:
        on_line = functools.partial(log, "%s | %s", stage)
        code, lines = stream(supervised(command, gpus, stage), on_line, lock_handles())
        if code:
            raise stage_error(stage, code, lines)
        return lines

    try:
        return remote_repro.work(stage, revision, repro)
    except remote_repro.CommandFailed as error:  # the remote, or the connection to it
        raise StageFailed(str(error)) from error
    except UserError as error:
        raise PermanentStageFailure(str(error)) from error


@flow(name="fleet", flow_run_name=run_name, log_prints=True)
def fleet(targets: list[str] | None = None) -> dict[str, str]:
    """Run all stages, or `targets` and what they need, on free workers: {stage: "ran" or "unchanged"}.

    If this is stopped, their runs are cancelled. Raises UserError if a pool has no worker, or if this clone has
    changes that no other has.
    """
    with run_lock(get_run_logger().info):
        remote_repro.check_clone()
        revision = git("rev-parse", "HEAD")
        remote_repro.checkout_outputs()
        whole = read_graph()
        graph, placement = whole.part(targets), read_placement(list(whole.needs))
        run_ids: list[UUID] = []

        def submit(stage: str) -> str:
            return run_on_worker(stage, vars(placement.of(stage)), revision, run_ids)

        with get_client(sync_client=True) as client:
            check_workers(client, {deployment(placement.of(stage)) for stage in graph.needs if graph.stale})
            results = run_graph(graph, submit, len(graph.needs), stop=lambda: cancel_runs(client, run_ids))
        remote_repro.collect(targets)
    if RAN in results.values():
        publish_results()
    return results


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    log_prints=True,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    # the request failed, not the stage: a retry then finds the run if it was submitted already
    retry_condition_fn=unless(StageFailed),
)
def run_on_worker(stage: str, place: dict, revision: str, run_ids: list[UUID]) -> str:
    """Run one stage as a run of its own and wait for its end. Raises StageFailed if it fails."""
    parameters = {"stage": stage, "revision": revision, "place": place, "pipeline": f"fleet-{flow_run.id}"}
    options = {"parameters": parameters, "flow_run_name": stage, "timeout": 0}
    with get_client(sync_client=True) as client:
        run = find_submitted_run(client, stage, revision)
        run = run or run_deployment(deployment(Place(**place)), **options)
        run_ids.append(run.id)
        print(f"{stage} is run {run.id}; its log: prefect flow-run logs {run.id}")
        state = run.state
        while not (state and state.is_final()):
            time.sleep(POLL_SECONDS)
            try:
                state = client.read_flow_run(run.id).state
            except httpx.HTTPError as error:  # while the server is down, it is asked again
                if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
                    raise
    if not state.is_completed():
        reason = " ".join((state.message or "").split())
        raise StageFailed(f"stage {stage} is {state.name.lower()} on its worker: {reason}")
    return RAN


def find_submitted_run(client: SyncPrefectClient, stage: str, revision: str) -> FlowRun | None:
    """The active run that an earlier coordinator submitted and did not wait for."""
    is_active = {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}
    query = FlowRunFilter.model_validate({"name": {"any_": [stage]}, "state": is_active})
    runs = client.read_flow_runs(flow_run_filter=query)
    return next((run for run in runs if run.parameters.get("revision") == revision), None)


def deployment(place: Place) -> str:
    return GPU_DEPLOYMENT if place.gpus else CPU_DEPLOYMENT


def check_workers(client: SyncPrefectClient, deployments: set[str]) -> None:
    """Raises UserError for a deployment that does not exist, or whose pool has no worker."""
    for name in sorted(deployments):
        try:
            pool = client.read_deployment_by_name(name).work_pool_name
        except ObjectNotFound as error:
            raise UserError(f"the server has no deployment {name}. Run: make deploy") from error
        if not any(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(pool)):
            fix = "In a clone for each, run: make workers"
            raise UserError(f"no worker takes runs from {pool}, which {name} needs. {fix}")


def cancel_runs(client: SyncPrefectClient, run_ids: list[UUID]) -> None:
    """Ask the workers to end the runs that have not ended yet, as far as the server answers."""
    for run_id in run_ids:
        with contextlib.suppress(httpx.HTTPError):
            state = client.read_flow_run(run_id).state
            if state and not state.is_final():
                client.set_flow_run_state(run_id, Cancelling(message="its coordinator was stopped"))


def main(argv: list[str] | None = None) -> None:
    targets = parse_targets(__doc__, argv)
    with one_sentence("fleet"):
        server_url()
        check_writable()
        results = fleet(targets or None)
        ran = [stage for stage, result in results.items() if result == RAN]
        listed = f": {', '.join(ran)}" if ran else ""
        print(f"fleet: {len(ran)} of {len(results)} stages went to workers{listed}")


if __name__ == "__main__":
    main()
