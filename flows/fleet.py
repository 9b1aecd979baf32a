"""python -m flows.fleet: the pipeline over several machines, each stage a run on a worker that has what the stage needs.

Each worker has a clone of its own, and the DVC remote is the only way between them (flows/machines.py). This is the coordinator:
it asks for each stage as soon as those that it needs have been handed over, and ends with everything here and one `dvc.lock`.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.states import Cancelling

from flows import machines
from flows._alone import alone, held_places
from flows._git import git
from flows._lifeline import end_with_worker
from flows.artifacts import show_results
from flows.bootstrap import server_url
from flows.graph import Graph, read_graph
from flows.keeper import kept
from flows.pipeline import may_pass, outcome
from flows.placement import Place, read_placement
from flows.repro import CACHED, RAN, StageFailed, StageRefused, failure, stream
from thousandwords.errors import UserError

WITH_GPU, WITHOUT = "stage/stage-gpu", "stage/stage-cpu"  # the deployments of `run_here`, each on a pool of its own
ASKED_EVERY = 1.0  # seconds
PAUSES = [2, 10, 30, 60]  # seconds before a server that could not answer is asked again


# --- on a worker ------------------------------------------------------------------------------------------------------


@flow(name="stage", flow_run_name="{stage}", log_prints=True)
def run_here(stage: str, revision: str, place: dict, pipeline: str) -> list[str]:
    """One stage at that revision in this worker's clone, handed over to the others; the stages that had to run."""
    end_with_worker()
    os.environ["THOUSANDWORDS_PIPELINE"] = pipeline  # one MLflow parent for the stages of all workers
    where = Place(**place)
    with alone(get_run_logger().info):
        tried = run_and_push.with_options(name=stage, retries=where.retries, retry_delay_seconds=where.delays)
        return tried(stage, revision, where.gpus)


@task(cache_policy=NO_CACHE, retry_condition_fn=may_pass, log_prints=True)
def run_and_push(stage: str, revision: str, gpus: int) -> list[str]:
    """The same without retries. Raises StageRefused for what a user has to mend, else StageFailed."""
    log = get_run_logger()

    def repro(*words: str) -> list[str]:
        code, lines = stream(kept(words, gpus, stage), lambda line: log.info("%s | %s", stage, line), held_places())
        if code:
            raise failure(stage, code, lines)
        return lines

    try:
        return machines.work(stage, revision, repro)
    except machines.CommandFailed as error:  # the remote, or the way to it
        raise StageFailed(str(error)) from error
    except UserError as error:
        raise StageRefused(str(error)) from error


# --- the coordinator --------------------------------------------------------------------------------------------------


@flow(name="fleet", log_prints=True)
def fleet(targets: list[str] | None = None) -> dict[str, str]:
    """Every stage, or those that `targets` need, on whatever worker is free: {stage: "ran" (asked for) or "unchanged"}.

    Raises UserError where a pool that it needs has no worker, or this clone has something that no other has.
    """
    end_with_worker()
    with alone(get_run_logger().info):
        machines.check_clone()
        revision = git("rev-parse", "HEAD")
        machines.bring()
        whole = read_graph()
        done = ask_for(whole.part(targets) if targets else whole, list(whole.needs), revision)
        machines.collect(targets)
    if RAN in done.values():
        show_results()
    return done


def ask_for(graph: Graph, known: list[str], revision: str) -> dict[str, str]:
    """All stages of the graph in their order; what was asked for is cancelled if this is stopped."""
    placement, asked, running = read_placement(known), [], {}
    with get_client(sync_client=True) as client:
        check_workers(client, {deployment(placement.of(stage)) for stage in graph.needs if graph.stale})
        try:
            for stage, needs in graph.needs.items():
                before = [running[other] for other in needs]
                one = ask_a_worker.with_options(name=stage)
                running[stage] = one.submit(stage, stage in graph.stale, vars(placement.of(stage)), revision, before, asked)
            return outcome(running)
        finally:
            cancel(client, asked)


def is_the_servers(task_: object, run: object, state: State) -> bool:
    """Whether asking failed, not the stage: it is asked again, and what was asked for already is taken up."""
    return not isinstance(state.result(raise_on_failure=False), StageFailed)


@task(
    task_run_name="{stage}", cache_policy=NO_CACHE, log_prints=True,
    retries=len(PAUSES), retry_delay_seconds=PAUSES, retry_condition_fn=is_the_servers,
)  # fmt: skip
def ask_a_worker(stage: str, is_stale: bool, place: dict, revision: str, before: list[str], asked: list[UUID]) -> str:
    """One stage as a run of its own; returns when that has ended, and raises StageFailed where it ended otherwise."""
    if not is_stale and RAN not in before:
        return CACHED
    given = {"stage": stage, "revision": revision, "place": place, "pipeline": f"fleet-{flow_run.id}"}
    with get_client(sync_client=True) as client:
        run = asked_before(client, stage, revision)
        run = run or run_deployment(deployment(Place(**place)), parameters=given, flow_run_name=stage, timeout=0)
        asked.append(run.id)
        print(f"{stage} is run {run.id}; its lines: prefect flow-run logs {run.id}")
        state = end_of(client, run)
    if not state.is_completed():
        raise StageFailed(f"stage {stage} is {state.name.lower()} on its worker: {' '.join((state.message or '').split())}")
    return RAN


def asked_before(client: SyncPrefectClient, stage: str, revision: str) -> FlowRun | None:
    """The run that a coordinator asked for and did not live to see the end of."""
    going = FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING])
    wanted = FlowRunFilter(name=FlowRunFilterName(any_=[stage]), state=FlowRunFilterState(type=going))
    found = client.read_flow_runs(flow_run_filter=wanted)
    return next((run for run in found if run.parameters.get("revision") == revision), None)


def deployment(place: Place) -> str:
    return WITH_GPU if place.gpus else WITHOUT


def end_of(client: SyncPrefectClient, run: FlowRun) -> State:
    """The final state of a run, once it has one; a server that is away for a while is asked again."""
    while True:
        time.sleep(ASKED_EVERY)
        try:
            state = client.read_flow_run(run.id).state
        except httpx.TransportError:
            continue
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:
                continue
            raise
        if state and state.is_final():
            return state


def check_workers(client: SyncPrefectClient, wanted: set[str]) -> None:
    """Raises UserError for a deployment that is not there, or that nobody would ever run."""
    for name in sorted(wanted):
        found = client.read_deployments(deployment_filter=_named(name))
        if not found:
            raise UserError(f"the server has no deployment {name}. Run: make deploy")
        pool = found[0].work_pool_name
        online = [one.name for one in client.read_workers_for_work_pool(pool) if one.status == "ONLINE"]
        if not online:
            raise UserError(f"no worker takes runs from {pool}, which {name} needs. In a clone for each, run: make workers")


def _named(name: str) -> DeploymentFilter:
    return DeploymentFilter(name=DeploymentFilterName(any_=[name.partition("/")[2]]))


def cancel(client: SyncPrefectClient, asked: list[UUID]) -> None:
    """Asks the workers to end what has not ended yet, as far as the server answers."""
    for run_id in asked:
        with contextlib.suppress(httpx.HTTPError):
            state = client.read_flow_run(run_id).state
            if state and not state.is_final():
                client.set_flow_run_state(run_id, Cancelling(message="its coordinator was stopped"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    targets = parser.parse_args(argv).stages or None
    try:
        server_url()
        done = fleet(targets)
    except (RuntimeError, UserError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    ran = [stage for stage, how in done.items() if how == RAN]
    print(f"fleet: {len(ran)} of {len(done)} stages went to workers{': ' if ran else ''}{', '.join(ran)}")


if __name__ == "__main__":
    main()
