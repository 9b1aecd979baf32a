"""Workers on a machine's GPUs, what is refused, and one of each: a schedule, a cancellation, a killed flow, a killed worker.

All on one Prefect server. The same with many trials is in tests/test_gpu_trials.py.
"""
from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
import time

import psutil
import pytest

from flows import _lifeline, bootstrap, workers
from flows.workers import planned
from tests.crew import Crew, flow_is_killed, kill, run_is_cancelled, worker_is_killed
from tests.orchestra import run, tiny_project, wait_for
from thousandwords.errors import UserError

# --- who is planned, and what is refused ------------------------------------------------------------------------------


def test_a_machine_gets_a_worker_for_each_gpu_and_one_for_what_needs_none():
    found = planned(["0", "1"], name="big")
    assert [(one.name, one.pool, one.gpus, one.runs) for one in found] == [
        ("big-gpu0", "thousandwords-gpu", ("0",), 1),
        ("big-gpu1", "thousandwords-gpu", ("1",), 1),
        ("big-cpu", "thousandwords-cpu", (), 2),
    ]
    assert [one.gpus for one in planned(["0", "1"], per_worker=2)] == [("0", "1"), ()]
    with pytest.raises(UserError, match="3 GPUs cannot be shared out by 2"):
        planned(["0", "1", "2"], per_worker=2)


def test_without_a_server_the_bootstrap_says_how_to_start_one(tmp_path):
    done = run(tiny_project(tmp_path, {}), "flows.bootstrap", PREFECT_API_URL="")
    assert done.returncode == 1 and "PREFECT_API_URL is not set" in done.stderr and "prefect server start" in done.stderr


def test_what_listens_and_is_no_prefect_server_is_refused(tmp_path):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

    other = http.server.HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{other.server_port}/api"
    done = run(tiny_project(tmp_path, {}), "flows.bootstrap", PREFECT_API_URL=url)
    other.shutdown()
    assert done.returncode == 1 and f"what listens at {url} is no Prefect server" in done.stderr


@pytest.mark.parametrize(("words", "seconds"), [("exec sleep 60", 1), ("sleep 60; true", 2)])
def test_workers_that_mind_no_signal_are_killed_after_one_wait_for_all(tmp_path, monkeypatch, words, seconds):
    """A longer one for those with a run, which is a child."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "IDLE_PATIENCE", 1.0)
    monkeypatch.setattr(workers, "PATIENCE", 2.0)
    workers.FOLDER.mkdir(parents=True)
    stubborn = [psutil.Popen(["sh", "-c", f"trap '' TERM; echo; {words}"], stdout=subprocess.PIPE) for _ in range(3)]
    for number, one in enumerate(stubborn):
        one.stdout.readline()
        (workers.FOLDER / f"{number}.json").write_text(json.dumps({"pid": one.pid, "born": one.create_time()}))
    runs = [child for one in stubborn for child in one.children()]
    start = time.monotonic()
    assert workers.stop() == ["0 was killed", "1 was killed", "2 was killed"]
    assert seconds <= time.monotonic() - start < seconds + 0.9 and [one.wait(5) for one in stubborn] == [-9, -9, -9]
    kill(runs)


# --- a schedule fires, a run is cancelled -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory):
    work = "setsid sleep 600 & trap 'echo saved >>checkpoint; exit 143' TERM; while true; do sleep 0.1; done"
    crew = Crew(tmp_path_factory.mktemp("crew"), work, schedules=({"interval": 10},))
    yield crew
    crew.close()


def test_a_schedule_fires_and_cancelling_leaves_nothing_and_saves_first(scheduled):
    server = scheduled.server
    first = wait_for(lambda: server.runs() and server.runs()[0], 60)
    scheduled.at_work(first["id"])
    assert first["auto_scheduled"] and server.run(first["id"])["work_pool_name"] == "thousandwords-gpu"
    assert len(scheduled.on_gpu()) >= 2  # the stage, and its child in a session of its own

    scheduled.pause_schedule()
    gone, _ = run_is_cancelled(scheduled, first["id"])

    assert gone <= 15 and (scheduled.projects[0] / "checkpoint").read_text() == "saved\n"


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_a_killed_flow_is_crashed_in_ten_seconds_and_its_gpu_is_free(scheduled):
    told, free = flow_is_killed(scheduled)
    assert told <= 10 and free <= 10 and scheduled.clashes() == 0


def test_a_flow_whose_worker_is_killed_ends_itself_in_a_minute(scheduled):
    assert worker_is_killed(scheduled) <= 60 and scheduled.clashes() == 0


def test_a_flow_whose_parent_is_no_worker_was_left_alone(monkeypatch):
    """As when the worker died while the flow was prepared: init is the parent then."""
    assert _lifeline.is_worker(os.getppid())  # nobody says that a worker started it
    monkeypatch.setenv("PREFECT__WORKER_NAME", "gpu0")
    assert not _lifeline.is_worker(1) and not _lifeline.is_worker(os.getpid())
    worker = psutil.Popen(["sh", "-c", "sleep 60; true", "worker"])
    wait_for(lambda: _lifeline.is_worker(worker.pid), 10)
    kill([*worker.children(), worker])


# --- the server, last: a deployment that comes again is not paused, so runs come on schedule ---------------------------------


def test_the_bootstrap_may_come_again_and_watches_over_the_dead(scheduled):
    said = scheduled.call("flows.bootstrap")
    assert "thousandwords-cpu, thousandwords-gpu" in said
    watch = [one for one in scheduled.server.ask("automations/filter") if one["name"].startswith("thousandwords: crash")]
    assert len(watch) == 1 and watch[0]["enabled"] and watch[0]["trigger"]["posture"] == "Proactive"
    assert watch[0]["trigger"]["within"] == 7200 and watch[0]["trigger"]["for_each"] == ["prefect.resource.id"]
    assert {"prefect.flow-run.Pending", "prefect.flow-run.heartbeat"} <= set(watch[0]["trigger"]["after"])
    assert [(one["type"], one["state"]) for one in watch[0]["actions"]] == [("change-flow-run-state", "CRASHED")]


def test_the_server_of_another_project_is_refused(scheduled, tmp_path):
    other = tiny_project(tmp_path, {})
    for words in (["flows.bootstrap"], ["flows.workers", "start"]):
        done = run(other, *words, PREFECT_API_URL=scheduled.server.api)
        owner = bootstrap.project_id(scheduled.projects[0])
        assert done.returncode == 1 and f"belongs to another project ({owner})" in done.stderr and len(owner) == 40
