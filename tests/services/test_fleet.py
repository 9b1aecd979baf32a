"""One pipeline on two workers, each with its own clone, and a coordinator, on a real Prefect server on PostgreSQL."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.fleet import CPU_DEPLOYMENT, cancel_runs, check_workers, find_submitted_run
from tests.helpers import clones
from tests.helpers.postgres import postgres
from tests.helpers.prefect_server import ROOT, Server, end, environment, wait_for
from thousandwords.core.errors import UserError

NEEDS = {"first": (), "other": (), "last": ("first",)}


class Fleet:
    """A coordinator's clone and two more, each with a worker that takes one run at a time.

    `settings` name the server.
    """

    def __init__(self, folder: Path, settings: dict[str, str], seconds: float) -> None:
        whole = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        # without the schedule of the nightly flow
        stages = [entry for entry in whole["deployments"] if entry["name"].startswith("stage-")]
        text = yaml.safe_dump({**whole, "deployments": stages})
        placement = yaml.safe_dump(
            {"stages": {"last": {"gpus": 1, "retries": 0}, "first": {"retries": 1, "retry_seconds": 0.1}}}
        )
        self.origin = clones.make_origin(
            folder, NEEDS, {"prefect.yaml": text, "flows/workers/placement.yaml": placement}
        )
        self.coordinator, *self.workers = (
            clones.clone(self.origin, name) for name in ("coordinator", "one", "two")
        )
        self.settings = {**settings, "PREFECT_WORKER_QUERY_SECONDS": "1", "SECONDS": str(seconds)}
        self.started: list[subprocess.Popen] = []

    def start(self, clone: Path, *args: str) -> subprocess.Popen:
        own = {**clones.environment(clone), **environment(clone / ".prefect", **self.settings)}
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-m", *args], cwd=clone, env=own, **piped)
        self.started.append(process)
        return process

    def end_started(self) -> None:
        """End what is still running of what a test started: a failed one must not disturb the next."""
        for process in self.started:
            end(process)
        self.started = []

    def call(self, clone: Path, *args: str) -> subprocess.CompletedProcess:
        process = self.start(clone, *args)
        output, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(args, process.returncode, output, errors)

    def must(self, clone: Path, *args: str) -> str:
        result = self.call(clone, *args)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def start_workers(self) -> None:
        for clone in self.workers:
            self.must(clone, "flows.workers", "start", "--runs", "1", "--name", clone.name)

    def close(self) -> None:
        for clone in self.workers:
            self.call(clone, "flows.workers", "stop")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    with postgres() as database:
        settings = {"PREFECT_API_DATABASE_CONNECTION_URL": database}
        running = Server(
            tmp_path_factory.mktemp("server"), **settings, PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2"
        )
        yield running
        running.stop()


@pytest.fixture(scope="module")
def fleet(prefect, tmp_path_factory):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), {"PREFECT_API_URL": prefect.api}, seconds=2)
    yield fleet
    fleet.close()


@pytest.fixture(autouse=True)
def ends_coordinators(fleet):
    yield
    fleet.end_started()


@pytest.fixture(scope="module")
def deployed(fleet):
    """The fleet with deployments, and no worker yet."""
    fleet.must(fleet.coordinator, "flows.deploy")
    return fleet


@pytest.fixture(scope="module")
def working(deployed):
    """The fleet with deployments and workers."""
    deployed.start_workers()
    return deployed


def commit_program(fleet: Fleet, stage: str, what: str) -> None:
    """Commit and push another program for all stages."""
    (fleet.coordinator / "stage.py").write_text(stage)
    clones.must(fleet.coordinator, "git", "commit", "-qam", what)
    clones.must(fleet.coordinator, "git", "push", "-q", "origin", f"HEAD:refs/heads/{what.replace(' ', '-')}")


def test_without_deployments_the_message_names_the_fix_before_anything_runs(fleet):
    result = fleet.call(fleet.coordinator, "flows.fleet")
    message = "the server has no deployment stage/stage-cpu. Run: make deploy"
    assert result.returncode == 1 and message in result.stderr and clones.ran(fleet.origin) == []


def test_without_workers_the_message_names_the_fix(deployed, prefect):
    message = "no worker takes runs from thousandwords-cpu, which stage/stage-cpu needs. In a clone for each, run: make workers"
    with (
        temporary_settings({PREFECT_API_URL: prefect.api}),
        get_client(sync_client=True) as client,
        pytest.raises(UserError, match=re.escape(message)),
    ):
        check_workers(client, {CPU_DEPLOYMENT})


def test_a_run_that_an_earlier_coordinator_submitted_is_found_by_its_revision_and_cancelled(
    deployed, prefect
):
    parameters = {"stage": "first", "revision": "abc", "place": {}, "pipeline": ""}
    with temporary_settings({PREFECT_API_URL: prefect.api}), get_client(sync_client=True) as client:
        run = run_deployment(
            CPU_DEPLOYMENT, parameters=parameters, flow_run_name="first", timeout=0, as_subflow=False
        )
        found = [
            find_submitted_run(client, stage, revision)
            for stage, revision in (("first", "abc"), ("first", "another"), ("other", "abc"))
        ]
        assert found[0].id == run.id and found[1:] == [None, None]

        cancel_runs(client, [run.id])

        assert client.read_flow_run(run.id).state.type in ("CANCELLING", "CANCELLED")
        assert find_submitted_run(client, "first", "abc") is None
        client.delete_flow_run(run.id)


def test_each_stage_runs_once_on_any_free_worker_and_an_unchanged_one_on_none(working, prefect):
    fleet = working
    output = fleet.must(fleet.coordinator, "flows.fleet")

    assert output.endswith("fleet: 3 of 3 stages went to workers: first, last, other\n")
    order = clones.ran(fleet.origin)
    assert sorted(order) == sorted(NEEDS) and order.index("first") < order.index("last")
    assert set(yaml.safe_load((fleet.coordinator / "dvc.lock").read_text())["stages"]) == set(NEEDS)
    assert (fleet.coordinator / "last.txt").read_text() == "last.txt first"
    assert clones.must(fleet.origin, "git", "status", "--porcelain") == ""  # no worker pushed anything to git
    runs = [run for run in prefect.runs() if run["name"] in NEEDS]
    assert {run["name"]: run["state_type"] for run in runs} == dict.fromkeys(NEEDS, "COMPLETED")

    clones.must(fleet.coordinator, "git", "commit", "-qm", "outputs of the fleet", "dvc.lock")
    before = len(prefect.runs("stage-cpu"))
    assert fleet.must(fleet.coordinator, "flows.fleet").endswith("fleet: 0 of 3 stages went to workers\n")
    assert len(prefect.runs("stage-cpu")) == before


def wait_for_worker(prefect: Server, earlier: set[str]) -> list[str]:
    """Wait until a worker has taken a run that is not among the earlier ones."""

    def taken() -> list[str]:
        runs = [run for run in prefect.runs() if run["id"] not in earlier and run["name"] in NEEDS]
        return [run["id"] for run in runs if run["state_type"] in ("PENDING", "RUNNING")]

    return wait_for(taken, 180, every=0.5)


@pytest.mark.slow  # half a minute; a run that was submitted earlier is found above
def test_a_second_coordinator_finds_the_runs_that_a_killed_one_had_submitted(working, prefect):
    fleet = working
    commit_program(fleet, clones.STAGE + "# changed\n", "a change")
    ran = clones.ran(fleet.origin)
    earlier = {run["id"] for run in prefect.runs()}
    first = fleet.start(fleet.coordinator, "flows.fleet", "first")
    wait_for_worker(prefect, earlier)
    first.kill()
    first.wait()

    output = fleet.must(fleet.coordinator, "flows.fleet", "first")

    assert output.endswith("fleet: 1 of 1 stages went to workers: first\n")
    assert clones.ran(fleet.origin)[len(ran) :] == ["first"]


def test_a_coordinator_stopped_by_ctrl_c_cancels_its_submitted_runs(working, prefect):
    fleet = working
    commit_program(fleet, clones.STAGE + "# again\n", "another change")
    earlier = {run["id"] for run in prefect.runs()}
    coordinator = fleet.start(fleet.coordinator, "flows.fleet", "first")
    wait_for_worker(prefect, earlier)
    coordinator.send_signal(signal.SIGINT)
    output, errors = coordinator.communicate(timeout=60)
    assert coordinator.returncode, output + errors

    def states() -> set[str]:
        runs = [run for run in prefect.runs() if run["id"] not in earlier and run["name"] in NEEDS]
        return {run["state_type"] for run in runs}

    wait_for(lambda: states() <= {"CANCELLED"}, 180, "its runs are not cancelled", every=1)


def test_a_failed_stage_is_named_with_its_worker_and_stages_that_need_it_are_not_submitted(working, prefect):
    fleet = working
    commit_program(fleet, "raise SystemExit(2)\n", "a mistake")
    earlier = {run["id"] for run in prefect.runs()}

    result = fleet.call(fleet.coordinator, "flows.fleet", "last")

    assert result.returncode == 1 and "fleet: stage first is failed on its worker: " in result.stderr
    assert "stage first failed with code 2" in result.stderr
    assert [run["name"] for run in prefect.runs() if run["id"] not in earlier and run["name"] in NEEDS] == [
        "first"
    ]
