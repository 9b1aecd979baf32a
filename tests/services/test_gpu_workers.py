"""Workers on a machine's GPUs: schedules, cancellations, killed flows and workers, rejected servers.

All on one Prefect server. Many trials, and more kinds: tests/reliability/test_gpu_trials.py.
"""

import os
import re
import subprocess
import time

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import deploy
from flows.workers import __main__ as workers
from flows.workers import run_lock
from tests.helpers.gpu_runs import GpuTestbed, cancel_run, kill
from tests.helpers.prefect_server import tiny_project, wait_for, web_page
from thousandwords.core.errors import UserError
from thousandwords.core.locks import take_lock, write_note


def test_without_a_server_deploy_says_how_to_start_one():
    message = "PREFECT_API_URL is not set.*prefect server start"
    with temporary_settings({PREFECT_API_URL: ""}), pytest.raises(UserError, match=message):
        deploy.bootstrap()


def test_a_server_that_is_not_prefect_is_rejected():
    with web_page() as page:
        message = f"the server at {page}/api is not Prefect"
        with temporary_settings({PREFECT_API_URL: f"{page}/api"}), pytest.raises(UserError, match=message):
            deploy.bootstrap()


@pytest.mark.parametrize(
    ("command", "seconds", "end"), [("exec sleep 60", 1, "ended"), ("sleep 60; true", 2, "was killed")]
)
def test_workers_that_ignore_signals_are_killed_after_one_wait_for_all(
    tmp_path, monkeypatch, command, seconds, end
):
    """The wait is longer for workers with a run, which is a child process; only these had something to lose."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "IDLE_PATIENCE", 1.0)
    monkeypatch.setattr(workers, "PATIENCE", 2.0)
    processes = []
    for number in range(3):
        with take_lock(workers.FOLDER / f"{number}.lock") as lock:
            line = ["sh", "-c", f"trap '' TERM; echo; {command}"]
            processes.append(psutil.Popen(line, stdout=subprocess.PIPE, pass_fds=[lock.fileno()]))
            write_note(lock, pid=processes[-1].pid)
        processes[-1].stdout.readline()
    runs = [child for process in processes for child in process.children()]
    start = time.monotonic()
    assert workers.stop() == [f"0 {end}", f"1 {end}", f"2 {end}"]
    assert seconds <= time.monotonic() - start < seconds + 0.9
    assert [process.wait(5) for process in processes] == [-9, -9, -9]
    kill(runs)


def test_a_flow_whose_parent_is_not_a_worker_has_lost_its_worker(monkeypatch):
    """As when the worker died while the flow was prepared: init is the parent then."""
    assert run_lock.is_worker(os.getppid())  # not started by a worker
    monkeypatch.setenv("PREFECT__WORKER_NAME", "gpu0")
    assert not run_lock.is_worker(1) and not run_lock.is_worker(os.getpid())
    worker = psutil.Popen(["sh", "-c", "sleep 60; true", "worker"])
    wait_for(lambda: run_lock.is_worker(worker.pid), 10)
    kill([*worker.children(), worker])


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory):
    # a second TERM may come before the shell has ended
    work = "setsid sleep 600 & trap 'echo saved >checkpoint; exit 143' TERM; while true; do sleep 0.1; done"
    testbed = GpuTestbed(tmp_path_factory.mktemp("testbed"), work, schedules=({"interval": 10},))
    yield testbed
    testbed.close()


def test_a_scheduled_run_starts_and_its_cancellation_saves_first_and_leaves_no_process(scheduled):
    """E7."""
    server = scheduled.server
    first = wait_for(lambda: server.runs() and server.runs()[0], 60)
    scheduled.wait_until_working(first["id"])
    assert first["auto_scheduled"] and server.run(first["id"])["work_pool_name"] == "thousandwords-gpu"
    assert len(scheduled.on_gpu()) >= 2  # the stage, and its child in its own session

    scheduled.pause_schedule()
    gone, _ = cancel_run(scheduled, first["id"])

    assert gone <= 15 and (scheduled.projects[0] / "checkpoint").read_text() == "saved\n"


def test_a_killed_flow_is_crashed_in_ten_seconds_and_its_gpu_is_free(scheduled):
    """E1: the worker lives and notices it."""
    run_id = scheduled.create_run()
    scheduled.wait_until_working(run_id)
    kill(scheduled.flows())
    scheduled.wait_for_state(run_id, "CRASHED", "FAILED", seconds=10)
    wait_for(lambda: not scheduled.is_held(), 10, "the GPU is not free")
    assert scheduled.count("clashes") == 0


@pytest.mark.parametrize("is_early", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_flow_whose_worker_is_killed_ends_itself_in_a_minute(scheduled, is_early):
    """E3: it must not train on while a new worker starts another. `is_early`: killed before the flow began."""
    run_id = scheduled.create_run()
    if is_early:
        wait_for(lambda: scheduled.processes("_workspace_supervisor"), 60)
    else:
        scheduled.wait_until_working(run_id)
    kill(scheduled.processes("prefect worker start"))
    wait_for(lambda: not scheduled.is_held() and not scheduled.left(), 60, "the flow still runs", every=0.3)
    scheduled.wait_for_state(run_id, "CRASHED", "FAILED", "CANCELLED", seconds=130)
    scheduled.start_workers()
    assert scheduled.count("clashes") == 0


def test_deploy_can_run_again_and_creates_one_automation_for_dead_runs(scheduled):
    """After the tests of runs: a second deploy resumes the schedule."""
    output = scheduled.call("flows.deploy")
    assert "thousandwords-cpu, thousandwords-gpu" in output
    automations = scheduled.server.ask("automations/filter")
    (automation,) = [each for each in automations if each["name"].startswith("thousandwords: crash")]
    trigger, (action,) = automation["trigger"], automation["actions"]
    assert automation["enabled"] and trigger["posture"] == "Proactive"
    assert trigger["within"] == 7200 and trigger["for_each"] == ["prefect.resource.id"]
    assert {"prefect.flow-run.Pending", "prefect.flow-run.heartbeat"} <= set(trigger["after"])
    assert (action["type"], action["state"]) == ("change-flow-run-state", "CRASHED")


@pytest.mark.parametrize("command", [deploy.bootstrap, lambda: workers.start([])], ids=["deploy", "workers"])
def test_the_server_of_another_project_is_rejected(scheduled, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tiny_project(tmp_path, {}))
    owner = deploy.project_id(scheduled.projects[0])
    message = re.escape(f"belongs to another project ({owner})")
    server = {PREFECT_API_URL: scheduled.server.api}
    with temporary_settings(server), pytest.raises(UserError, match=message):
        command()
    assert len(owner) == 40
