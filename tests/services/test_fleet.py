"""One pipeline on two workers, each with its own clone, and a coordinator, on a real Prefect server on PostgreSQL."""

import contextvars
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.fleet import CPU_DEPLOYMENT, check_workers, find_submitted_run
from flows.fleet import fleet as coordinate
from tests.helpers import clones
from tests.helpers.postgres import postgres
from tests.helpers.prefect_server import ROOT, Server, environment, wait_for
from thousandwords.core.errors import UserError

NEEDS = {"first": (), "other": (), "last": ("first",)}


class Fleet:
    """A coordinator's clone and two more, each with a worker that takes one run at a time; `settings` name the server."""

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

    def call(self, clone: Path, *args: str) -> subprocess.CompletedProcess:
        own = {**clones.environment(clone), **environment(clone / ".prefect", **self.settings)}
        command = [sys.executable, "-m", *args]
        return subprocess.run(command, cwd=clone, env=own, capture_output=True, text=True, timeout=300)

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


@pytest.fixture
def client(prefect):
    with temporary_settings({PREFECT_API_URL: prefect.api}), get_client(sync_client=True) as client:
        yield client


def test_without_deployments_the_message_names_the_fix(fleet, client):
    with pytest.raises(UserError, match="the server has no deployment stage/stage-cpu. Run: make deploy"):
        check_workers(client, {CPU_DEPLOYMENT})


def test_without_workers_the_message_names_the_fix(deployed, client):
    message = "no worker takes runs from thousandwords-cpu, which stage/stage-cpu needs. In a clone for each, run: make workers"
    with pytest.raises(UserError, match=message):
        check_workers(client, {CPU_DEPLOYMENT})


def test_a_coordinator_stopped_by_ctrl_c_cancels_its_submitted_runs_which_another_finds_until_then(
    deployed, prefect, client, monkeypatch
):
    """In this process, and without a worker: no one takes the run before it is cancelled."""
    monkeypatch.chdir(deployed.coordinator)
    for name, value in clones.environment(deployed.coordinator).items():
        monkeypatch.setenv(name, value)
    revision = clones.must(deployed.coordinator, "git", "rev-parse", "HEAD").strip()
    monkeypatch.setattr("flows.fleet.check_workers", lambda *_: None)
    found = []

    def interrupt() -> None:
        wait_for(lambda: prefect.runs("stage-cpu"), 60)
        names = (("first", revision), ("first", "another"), ("other", revision))
        found.extend(find_submitted_run(client, *name) for name in names)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=contextvars.copy_context().run, args=(interrupt,)).start()
    with pytest.raises(KeyboardInterrupt):
        coordinate(["first"])

    (run,) = prefect.runs("stage-cpu")
    assert str(found[0].id) == run["id"] and found[1:] == [None, None]
    assert run["state_type"] == "CANCELLED"
    assert find_submitted_run(client, "first", revision) is None
    client.delete_flow_run(found[0].id)


def test_each_stage_runs_once_on_any_free_worker_and_an_unchanged_one_on_none(working, prefect):
    fleet = working
    output = fleet.must(fleet.coordinator, "flows.fleet")

    assert output.endswith("fleet: 3 of 3 stages went to workers: first, other, last\n")
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


def test_a_failed_stage_is_named_with_its_worker_and_stages_that_need_it_are_not_submitted(working, prefect):
    fleet = working
    (fleet.coordinator / "stage.py").write_text("raise SystemExit(2)\n")
    (fleet.coordinator / "flows/workers/placement.yaml").write_text("stages: {first: {retries: 0}}\n")
    clones.must(fleet.coordinator, "git", "commit", "-qam", "a mistake")
    clones.must(fleet.coordinator, "git", "push", "-q", "origin", "HEAD:refs/heads/a-mistake")
    earlier = {run["id"] for run in prefect.runs()}

    result = fleet.call(fleet.coordinator, "flows.fleet", "last")

    assert result.returncode == 1 and "fleet: stage first is failed on its worker: " in result.stderr
    assert "stage first failed with code 2" in result.stderr
    names = [run["name"] for run in prefect.runs() if run["id"] not in earlier and run["name"] in NEEDS]
    assert names == ["first"]
