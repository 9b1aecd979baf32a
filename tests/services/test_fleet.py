"""One pipeline on two workers, each with a clone of its own, asked for by a coordinator: on a real Prefect server.

How much time two workers save is tried on PostgreSQL (tests/test_team.py): SQLite makes one of two writers wait for seconds.
"""
from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import clones
from tests.orchestra import ROOT, Server, environment, wait_for

NEEDS = {"first": (), "left": ("first",), "right": ("first",), "last": ("left", "right")}


class Fleet:
    """A coordinator's clone and two more, each of which has a worker that takes one run at a time; `told` says of the server."""

    def __init__(self, folder: Path, told: dict[str, str], seconds: float) -> None:
        whole = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        stages = [one for one in whole["deployments"] if one["name"].startswith("stage-")]  # no night begins in these tests
        text = yaml.safe_dump({**whole, "deployments": stages})
        placement = yaml.safe_dump({"stages": {"last": {"gpus": 1, "retries": 0}, "first": {"retries": 1, "retry_seconds": 0.1}}})
        self.origin = clones.make_origin(folder, NEEDS, {"prefect.yaml": text, "flows/placement.yaml": placement})
        self.coordinator, *self.workers = (clones.clone(self.origin, name) for name in ("coordinator", "one", "two"))
        self.told = {**told, "PREFECT_WORKER_QUERY_SECONDS": "1", "SECONDS": str(seconds)}

    def begin(self, clone: Path, *words: str, hears_ctrl_c: bool = False) -> subprocess.Popen:
        """`hears_ctrl_c`: also where these tests run in a shell's background, which has it ignored."""
        hear = (lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) if hears_ctrl_c else None
        own = {**clones.environment(clone), **environment(clone / ".prefect", **self.told)}
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", *words], cwd=clone, env=own, preexec_fn=hear, **piped)

    def call(self, clone: Path, *words: str) -> subprocess.CompletedProcess:
        process = self.begin(clone, *words)
        said, told = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, said, told)

    def must(self, clone: Path, *words: str) -> str:
        done = self.call(clone, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_workers(self) -> None:
        for clone in self.workers:
            self.must(clone, "flows.workers", "start", "--runs", "1", "--name", clone.name)

    def close(self) -> None:
        for clone in self.workers:
            self.call(clone, "flows.workers", "stop")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"), PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def fleet(prefect, tmp_path_factory):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), {"PREFECT_API_URL": prefect.api}, seconds=2)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def working(fleet):
    """The same with deployments and workers."""
    fleet.must(fleet.coordinator, "flows.bootstrap")
    fleet.start_workers()
    return fleet


def changed(fleet: Fleet, stage: str, what: str) -> None:
    """Another program for all stages, known to every clone."""
    (fleet.coordinator / "stage.py").write_text(stage)
    clones.must(fleet.coordinator, "git", "commit", "-qam", what)
    clones.must(fleet.coordinator, "git", "push", "-q", "origin", f"HEAD:refs/heads/{what.replace(' ', '-')}")


def test_without_deployments_or_workers_the_mend_is_told_before_anything_runs(fleet):
    done = fleet.call(fleet.coordinator, "flows.fleet")
    assert done.returncode == 1 and "the server has no deployment stage/stage-cpu. Run: make deploy" in done.stderr
    fleet.must(fleet.coordinator, "flows.bootstrap")
    done = fleet.call(fleet.coordinator, "flows.fleet")
    told = "no worker takes runs from thousandwords-cpu, which stage/stage-cpu needs. In a clone for each, run: make workers"
    assert done.returncode == 1 and told in done.stderr and clones.ran(fleet.origin) == []


def test_each_stage_runs_once_on_whatever_worker_is_free(working, prefect):
    fleet = working
    said = fleet.must(fleet.coordinator, "flows.fleet")

    assert said.endswith("fleet: 4 of 4 stages went to workers: first, left, right, last\n")
    order = clones.ran(fleet.origin)
    assert sorted(order) == sorted(NEEDS) and order[0] == "first" and order[-1] == "last"
    assert set(yaml.safe_load((fleet.coordinator / "dvc.lock").read_text())["stages"]) == set(NEEDS)
    assert (fleet.coordinator / "last.txt").read_text() == "last.txt left right"
    assert clones.must(fleet.origin, "git", "status", "--porcelain") == ""  # no worker pushed anything to git
    ran = [one for one in prefect.runs() if one["name"] in NEEDS]
    assert {one["name"]: one["state_type"] for one in ran} == dict.fromkeys(NEEDS, "COMPLETED")


def test_what_is_known_already_goes_to_nobody(working, prefect):
    fleet = working
    fleet.must(fleet.coordinator, "flows.fleet")
    clones.command(fleet.coordinator, "git", "commit", "-qm", "what the fleet made", "dvc.lock")
    before = len(prefect.runs("stage-cpu"))
    assert fleet.must(fleet.coordinator, "flows.fleet").endswith("fleet: 0 of 4 stages went to workers\n")
    assert len(prefect.runs("stage-cpu")) == before


def test_a_second_coordinator_takes_up_what_one_that_was_killed_had_asked_for(working, prefect):
    fleet = working
    changed(fleet, clones.STAGE + "# changed\n", "a change")
    before, ran = len(prefect.runs("stage-cpu")), clones.ran(fleet.origin)
    first = fleet.begin(fleet.coordinator, "flows.fleet")
    wait_for(lambda: len(prefect.runs("stage-cpu")) > before, 60)
    first.kill()
    first.wait()

    said = fleet.must(fleet.coordinator, "flows.fleet")

    assert said.endswith("fleet: 4 of 4 stages went to workers: first, left, right, last\n")
    assert sorted(clones.ran(fleet.origin)[len(ran) :]) == sorted(NEEDS)


def test_a_coordinator_stopped_by_ctrl_c_takes_back_what_it_has_asked_for(working, prefect):
    fleet = working
    changed(fleet, clones.STAGE + "# again\n", "another change")
    known = {one["id"] for one in prefect.runs()}
    coordinator = fleet.begin(fleet.coordinator, "flows.fleet", hears_ctrl_c=True)

    def asked() -> list[dict]:
        return [one for one in prefect.runs() if one["id"] not in known and one["name"] in NEEDS]

    wait_for(asked, 60)
    coordinator.send_signal(signal.SIGINT)
    said, told = coordinator.communicate(timeout=60)
    assert coordinator.returncode, said + told
    wait_for(lambda: {one["state_type"] for one in asked()} <= {"CANCELLED"}, 90, "its runs are not cancelled", every=1)


def test_a_stage_that_fails_is_named_with_its_worker_and_what_needs_it_is_not_asked_for(working, prefect):
    fleet = working
    (fleet.coordinator / "stage.py").write_text("raise SystemExit(2)\n")
    clones.must(fleet.coordinator, "git", "commit", "-qam", "a mistake")
    asked = {one["id"] for one in prefect.runs()}

    done = fleet.call(fleet.coordinator, "flows.fleet")
    assert done.returncode == 1 and "Push it first: git push" in done.stderr  # nobody else has that commit

    clones.must(fleet.coordinator, "git", "push", "-q", "origin", "HEAD:refs/heads/mistake")
    done = fleet.call(fleet.coordinator, "flows.fleet")
    assert done.returncode == 1 and "fleet: stage first is failed on its worker: " in done.stderr
    assert "stage first failed with code 2" in done.stderr
    new = [one["name"] for one in prefect.runs() if one["id"] not in asked]
    assert new.count("first") == 2 and not {"left", "right", "last"} & set(new)
