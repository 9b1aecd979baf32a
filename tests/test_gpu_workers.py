"""Workers, schedules and deaths on a real Prefect server: rows E1 to E7 and E11 of the table of what may go wrong.

The slow tests are trials of the same kind, THOUSANDWORDS_KILLS of each; they print what they saw.
"""
from __future__ import annotations

import http.server
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from flows.workers import planned
from tests.orchestra import ROOT, Server, run, tiny_project, wait_for
from thousandwords.errors import UserError

TRIALS = int(os.environ.get("THOUSANDWORDS_KILLS", "10"))
FAST = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2", "PREFECT_WORKER_QUERY_SECONDS": "1"}
# the kernel's word on who is on a GPU: a lock of its own, held by all that the stage starts, and a line for each clash
PROBE = "exec 9>>{logs}/$CUDA_VISIBLE_DEVICES.probe; flock -n 9 || echo clash >>{logs}/clashes; echo $$ >>{logs}/begun; {work}"


class Crew:
    """A server, and small projects with workers that all see the GPU called 0."""

    def __init__(self, folder: Path, work: str, projects: int = 1, schedules: tuple[dict, ...] = ()) -> None:
        self.folder, self.logs = folder, folder / "logs"
        self.logs.mkdir(parents=True)
        self.server = Server(folder / "server", **FAST)
        self.projects = [self._project(folder / f"project{number}", work, schedules) for number in range(projects)]
        self.call("flows.bootstrap")
        for project in self.projects:
            self.call("flows.workers", "start", project=project)

    def _project(self, folder: Path, work: str, schedules: tuple[dict, ...]) -> Path:
        probe = {"cmd": PROBE.format(logs=self.logs, work=work), "always_changed": True}
        project = tiny_project(folder, {"train": probe}, {"stages": {"train": {"gpus": 1, "retries": 0}}})
        whole = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        one = {**next(one for one in whole["deployments"] if one["name"] == "pipeline"), "schedules": list(schedules)}
        (project / "prefect.yaml").write_text(yaml.safe_dump({**whole, "deployments": [one]}))
        return project

    def settings(self) -> dict[str, str]:
        gpus = {"CUDA_VISIBLE_DEVICES": "0", "THOUSANDWORDS_GPU_LOCKS": str(self.folder / "gpu-locks")}
        return {**FAST, **gpus, "PREFECT_API_URL": self.server.api}

    def call(self, *words: str, project: Path | None = None) -> str:
        done = run(project or self.projects[0], *words, **self.settings())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask_for_a_run(self) -> str:
        found = self.server.ask("deployments/filter")[0]
        return self.server.ask(f"deployments/{found['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]

    def state(self, run_id: str) -> str:
        return self.server.run(run_id)["state_type"]

    def wait_for_state(self, run_id: str, *states: str, seconds: float) -> float:
        start = time.monotonic()
        wait_for(lambda: self.state(run_id) in states, seconds, f"{states}, it is {self.state(run_id)}")
        return time.monotonic() - start

    def begun(self) -> int:
        """How many stages have begun so far."""
        path = self.logs / "begun"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def at_work(self, run_id: str, seconds: float = 90) -> None:
        before = self.begun()
        wait_for(lambda: self.begun() > before or self.state(run_id) == "RUNNING", seconds)
        wait_for(lambda: self.begun() > 0 and self.on_gpu(), seconds, "no stage began")

    def on_gpu(self) -> list[psutil.Process]:
        """What holds the probe's lock of GPU 0 open, by the kernel's list of open files."""
        probe, found = str(self.logs / "0.probe"), []
        for process in psutil.process_iter():
            try:
                if any(one.path == probe for one in process.open_files()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def clashes(self) -> int:
        path = self.logs / "clashes"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def processes(self, word: str) -> list[psutil.Process]:
        """This crew's processes with a word in their command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if word in " ".join(process.cmdline()) and str(self.folder) in str(process.environ().get("PREFECT_HOME")):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def flows(self) -> list[psutil.Process]:
        return self.processes("prefect.engine")

    def workers(self) -> list[psutil.Process]:
        return self.processes("prefect worker start")

    def close(self) -> None:
        for project in self.projects:
            run(project, "flows.workers", "stop", **self.settings())
        self.server.stop()


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


# --- who is planned, and what is refused ------------------------------------------------------------------------------


def test_a_machine_gets_a_worker_for_each_gpu_and_one_for_what_needs_none():
    workers = planned(["0", "1"], name="big")
    assert [(one.name, one.pool, one.gpus, one.runs) for one in workers] == [
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


# --- a schedule fires, a run is cancelled -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory):
    work = "setsid sleep 600 & trap 'echo saved >>checkpoint; exit 143' TERM; while true; do sleep 0.1; done"
    crew = Crew(tmp_path_factory.mktemp("crew"), work, schedules=({"interval": 15},))
    yield crew
    crew.close()


@pytest.mark.slow
def test_a_schedule_fires_and_cancelling_leaves_nothing_and_saves_first(scheduled):
    server = scheduled.server
    first = wait_for(lambda: server.runs() and server.runs()[0], 60)
    scheduled.at_work(first["id"])
    assert first["auto_scheduled"] and server.run(first["id"])["work_pool_name"] == "thousandwords-gpu"
    assert len(scheduled.on_gpu()) >= 2  # the stage, and its child in a session of its own

    deployment = server.ask("deployments/filter")[0]["id"]
    server.ask(f"deployments/{deployment}/pause_deployment")
    start = time.monotonic()
    server.ask(f"flow_runs/{first['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False})
    scheduled.wait_for_state(first["id"], "CANCELLED", seconds=30)

    assert scheduled.on_gpu() == [] and time.monotonic() - start < 25
    assert (scheduled.projects[0] / "checkpoint").read_text() == "saved\n" and scheduled.flows() == []


@pytest.mark.slow
def test_the_bootstrap_may_come_again_and_watches_over_the_dead(scheduled):
    said = scheduled.call("flows.bootstrap")
    assert "thousandwords-cpu, thousandwords-gpu" in said
    watch = [one for one in scheduled.server.ask("automations/filter") if one["name"].startswith("thousandwords: crash")]
    assert len(watch) == 1 and watch[0]["enabled"] and watch[0]["trigger"]["posture"] == "Proactive"
    assert watch[0]["trigger"]["within"] == 90 and watch[0]["trigger"]["for_each"] == ["prefect.resource.id"]
    assert {"prefect.flow-run.Pending", "prefect.flow-run.heartbeat"} <= set(watch[0]["trigger"]["after"])
    assert [(one["type"], one["state"]) for one in watch[0]["actions"]] == [("change-flow-run-state", "CRASHED")]


@pytest.mark.slow
def test_the_server_of_another_project_is_refused(scheduled, tmp_path):
    other = tiny_project(tmp_path, {})
    done = run(other, "flows.bootstrap", PREFECT_API_URL=scheduled.server.api)
    assert done.returncode == 1 and f"belongs to another project ({scheduled.projects[0]})" in done.stderr


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def crew(tmp_path, request):
    work, projects = getattr(request, "param", ("sleep 600", 1))
    crew = Crew(tmp_path, work, projects)
    yield crew
    crew.close()


@pytest.mark.slow
def test_a_killed_flow_is_crashed_at_once_and_its_gpu_is_free(crew):
    """E1: the worker lives, and sees it."""
    for _ in range(TRIALS):
        one = crew.ask_for_a_run()
        crew.at_work(one)
        start = time.monotonic()
        kill(crew.flows())
        told = crew.wait_for_state(one, "CRASHED", "FAILED", seconds=20)
        wait_for(lambda: not crew.on_gpu(), 20)
        print(f"E1: crashed after {told:.1f} s, GPU free after {time.monotonic() - start:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["pending", "at start", "at work"])
def test_a_killed_worker_and_flow_are_crashed_in_two_minutes_and_the_next_run_starts(crew, moment):
    """E2: nobody is left to tell Prefect; nobody does anything by hand but start workers again."""
    for _ in range(TRIALS):
        one = crew.ask_for_a_run()
        if moment == "pending":
            crew.wait_for_state(one, "PENDING", "RUNNING", seconds=60)
        elif moment == "at start":
            crew.wait_for_state(one, "RUNNING", seconds=60)
        else:
            crew.at_work(one)
        start = time.monotonic()
        kill(crew.workers())
        kill(crew.processes("_workspace_supervisor"))
        kill(crew.flows())
        crew.call("flows.workers", "start")
        following = crew.ask_for_a_run()
        ended = crew.wait_for_state(one, "CRASHED", seconds=120)
        wait_for(lambda following=following: crew.state(following) == "RUNNING", 150 - (time.monotonic() - start))
        print(f"E2 {moment}: crashed after {ended:.0f} s, the next one at work after {time.monotonic() - start:.0f} s")
        crew.at_work(following)
        kill(crew.flows())
        crew.wait_for_state(following, "CRASHED", "FAILED", seconds=30)
        wait_for(lambda: not crew.on_gpu(), 30)
    assert crew.clashes() == 0


@pytest.mark.slow
def test_a_flow_whose_worker_is_killed_ends_itself(crew):
    """E3: it would train on, while a new worker starts another."""
    for _ in range(TRIALS):
        one = crew.ask_for_a_run()
        crew.at_work(one)
        start = time.monotonic()
        kill(crew.workers())
        wait_for(lambda: not crew.on_gpu() and not crew.flows(), 60)
        print(f"E3: nothing was left after {time.monotonic() - start:.1f} s")
        crew.wait_for_state(one, "CRASHED", "FAILED", "CANCELLED", seconds=130)
        crew.call("flows.workers", "start")
    assert crew.clashes() == 0


@pytest.mark.slow
@pytest.mark.parametrize("crew", [("sleep 40", 1)], indirect=True)
def test_a_run_does_not_mind_that_its_server_is_away(crew):
    """E4: 20 s without a server in the middle."""
    for _ in range(TRIALS):
        one = crew.ask_for_a_run()
        crew.at_work(one)
        crew.server.stop(signal.SIGKILL)
        time.sleep(20)
        crew.server.start()
        crew.wait_for_state(one, "COMPLETED", seconds=120)
    assert crew.clashes() == 0


@pytest.mark.slow
@pytest.mark.parametrize("crew", [("setsid sleep 1.5 & sleep 1", 3)], indirect=True)
def test_never_two_runs_on_a_gpu_whatever_is_killed(crew):
    """E5: three workers that all take GPU 0 for theirs; flows, keepers and stages are killed at random."""
    rng, runs = random.Random(0), int(os.environ.get("THOUSANDWORDS_RUNS", "50"))
    asked = [crew.ask_for_a_run() for _ in range(runs)]
    ends = ("COMPLETED", "CRASHED", "FAILED", "CANCELLED")
    kills, deadline = 0, time.monotonic() + 30 * runs
    while any(crew.state(one) not in ends for one in asked):
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.5, 3))
        if rng.random() < 0.4 and (some := crew.processes(rng.choice(["prefect.engine", "flows.keeper", "dvc --wait"]))):
            kill([rng.choice(some)])
            kills += 1
    states = [crew.state(one) for one in asked]
    print(f"E5: {runs} runs, {kills} kills, {crew.begun()} stages begun, {crew.clashes()} clashes, "
          f"{ {name: states.count(name) for name in set(states)} }")  # fmt: skip
    assert crew.clashes() == 0 and crew.begun() > runs // 3


@pytest.mark.slow
def test_cancelling_at_any_moment_leaves_nothing(crew):
    """E7, with a child in a session of its own in the quick version above."""
    rng = random.Random(1)
    for _ in range(TRIALS):
        one = crew.ask_for_a_run()
        crew.wait_for_state(one, "PENDING", "RUNNING", seconds=60)
        time.sleep(rng.uniform(0, 8))
        start = time.monotonic()
        crew.server.ask(f"flow_runs/{one}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        crew.wait_for_state(one, "CANCELLED", seconds=60)
        assert crew.on_gpu() == []
        print(f"E7: cancelled, and nothing left, after {time.monotonic() - start:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("crew", [("sleep 150", 1)], indirect=True)
def test_a_run_that_works_is_not_taken_for_dead(crew):
    """E11: longer than the watch waits, and stopped for 60 s in the middle."""
    one = crew.ask_for_a_run()
    crew.at_work(one)
    time.sleep(35)
    for flow in crew.flows():
        flow.suspend()
    time.sleep(60)
    for flow in crew.flows():
        flow.resume()
    crew.wait_for_state(one, "COMPLETED", "CRASHED", "FAILED", seconds=200)
    assert crew.state(one) == "COMPLETED"
