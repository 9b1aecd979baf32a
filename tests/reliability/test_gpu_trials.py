"""Many deaths of flows, workers, servers on a real Prefect server: rows E1 to E5, E7 and E11 of the table of what may go wrong.

By default as many of each as the bar asks for, hours in all; THOUSANDWORDS_KILLS=1 tries each once. They print what they saw.
Rows E1 and E3 have a quick version in tests/test_gpu_workers.py; clocks and disks (E12) are in tests/test_gpu_surroundings.py.
"""
from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest

from tests.crew import (
    ENDS,
    TRIALS,
    Crew,
    database_is_locked,
    flow_is_killed,
    kill,
    run_is_cancelled,
    saw,
    server_is_away,
    stopped,
    worker_is_killed,
)
from tests.orchestra import wait_for
from tests.steps import after

pytestmark = pytest.mark.slow
UNTIL_TOLD = "while ! test -f {logs}/go; do sleep 0.05; done; rm {logs}/go"


@pytest.fixture
def crew(tmp_path, request):
    work, projects = getattr(request, "param", ("sleep 600", 1))
    crew = Crew(tmp_path, work, projects)
    yield crew
    crew.close()


def trials(count: int) -> range:
    return range(TRIALS or count)


def test_a_killed_flow_is_crashed_in_ten_seconds_and_its_gpu_is_free(crew):
    """E1."""
    for _ in trials(20):
        told, free = flow_is_killed(crew)
        saw(f"E1: crashed after {told:.1f} s, GPU free after {free:.1f} s")
    assert crew.clashes() == 0


@pytest.mark.parametrize("crew", [(UNTIL_TOLD, 1)], indirect=True)
@pytest.mark.parametrize("moment", ["pending", "at start", "at work", "at the end", "while it is cancelled"])
def test_a_dead_machine_s_run_is_crashed_in_two_minutes_and_the_next_one_starts(crew, moment):
    """E2: nobody is left to tell Prefect; nobody does anything by hand but start workers again."""
    rng, told_so = random.Random(moment), 0
    for _ in trials(10):
        one = crew.ask_for_a_run()
        reach(crew, one, moment, rng)
        start = time.monotonic()
        kill(crew.machine())
        time.sleep(0.5)
        known = crew.state(one)
        crew.start_workers()
        following = crew.ask_for_a_run()
        wanted = {"COMPLETED": "COMPLETED", "CANCELLING": "CANCELLED"}.get(known, "CRASHED")
        crew.wait_for_state(one, wanted, seconds=120 - (time.monotonic() - start))
        ended = time.monotonic() - start
        crew.at_work(following, 150 - ended)
        told_so += known == "COMPLETED"
        saw(f"E2 {moment}: {known}, {wanted} after {ended:.0f} s, the next at work after {time.monotonic() - start:.0f} s")
        kill(crew.flows())
        crew.wait_for_state(following, "CRASHED", "FAILED", seconds=30)
        wait_for(lambda: not crew.is_held(), 30)
    saw(f"E2 {moment}: {told_so} had told the server that they were complete")
    assert crew.clashes() == 0


def reach(crew: Crew, run_id: str, moment: str, rng: random.Random) -> None:
    """Waits until the run is there; "at the end" is any moment from the end of its last stage to its last word."""
    if moment == "pending":
        crew.wait_for_state(run_id, "PENDING", "RUNNING", seconds=180)
    elif moment == "at start":
        crew.wait_for_state(run_id, "RUNNING", seconds=180)
    else:
        crew.at_work(run_id)
    if moment == "at the end":
        (crew.logs / "go").touch()
        wait_for(lambda: not crew.is_held(), 20)
        time.sleep(rng.uniform(0, 3))
    if moment == "while it is cancelled":
        crew.cancel(run_id)


@pytest.mark.parametrize("moment", ["before it began", "at work"])
def test_a_flow_whose_worker_is_killed_ends_itself_in_a_minute(crew, moment):
    """E3."""
    for _ in trials(10):
        saw(f"E3 {moment}: nothing was left after {worker_is_killed(crew, moment != 'at work'):.1f} s")
    assert crew.clashes() == 0


AWAY = [
    (("sleep $(shuf -i 30-90 -n 1)", 1), server_is_away, 60),
    (("sleep $(shuf -i 10-60 -n 1)", 1), database_is_locked, 30),
]


@pytest.mark.parametrize(("crew", "trouble", "seconds"), AWAY, indirect=["crew"])
def test_a_run_does_not_mind_that_its_server_does_not_answer(crew, trouble, seconds):
    """E4: killed for a minute, or its database locked for half of one; some runs end in that time."""
    for _ in trials(10):
        one = crew.ask_for_a_run()
        crew.at_work(one)
        trouble(crew, seconds)
        back = time.monotonic()
        crew.wait_for_state(one, "COMPLETED", seconds=180)
        wait_for(lambda: not crew.flows(), 30)
        assert crew.history(one)[-1] == "COMPLETED" and "CRASHED" not in crew.history(one)
        saw(f"E4 {trouble.__name__}: {seconds} s; completed {time.monotonic() - back:.0f} s later")
    assert crew.clashes() == 0 and crew.begun() == len(trials(10))


@pytest.mark.parametrize("crew", [("setsid sleep 1.5 & sleep 1", 3)], indirect=True)
def test_never_two_runs_on_a_gpu_whatever_is_killed(crew):
    """E5: three workers that all take GPU 0 for theirs; flows, keepers and stages are killed or stopped at random."""
    rng, runs = random.Random(0), (TRIALS or 10) * 5
    asked = [crew.ask_for_a_run() for _ in range(runs)]
    kills, stops, deadline = 0, 0, time.monotonic() + 30 * runs
    while set(crew.states(asked)) - set(ENDS):
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.5, 3))
        if rng.random() < 0.4 and (some := crew.processes(rng.choice(["prefect.engine", "flows.keeper", "dvc --wait"]))):
            kill([rng.choice(some)])
            kills += 1
        elif rng.random() < 0.2 and (some := crew.processes("flows.keeper")):
            with stopped([rng.choice(some)]):
                time.sleep(rng.uniform(1, 5))
            stops += 1
    states = crew.states(asked)
    saw(f"E5: {runs} runs, {kills} kills, {stops} stops, {crew.begun()} stages begun, {crew.clashes()} clashes, "
          f"{ {name: states.count(name) for name in set(states)} }")  # fmt: skip
    assert crew.clashes() == 0 and crew.begun() > runs // 3


@pytest.mark.parametrize("crew", [(UNTIL_TOLD, 2)], indirect=True)
def test_a_holder_that_is_stopped_for_longer_than_the_watch_waits_admits_no_second(crew):
    """E5: Prefect takes the first run for dead and starts the next one; the kernel's lock does not."""
    for _ in range(min(len(trials(3)), 3)):
        one, before = crew.ask_for_a_run(), crew.begun()
        crew.at_work(one)
        with stopped([*crew.flows(), *crew.processes("flows.keeper"), *crew.on_gpu()]):
            following = crew.ask_for_a_run()
            crew.wait_for_state(one, "CRASHED", seconds=150)
            crew.wait_for_state(following, "RUNNING", seconds=60)
            time.sleep(20)
            assert crew.begun() == before + 1
        (crew.logs / "go").touch()
        wait_for(lambda before=before: crew.begun() == before + 2, 60, "the next stage does not begin")
        (crew.logs / "go").touch()
        crew.wait_for_state(following, "COMPLETED", seconds=60)
        saw(f"E5: the stopped run is {crew.state(one)}, the next one began after it; {crew.clashes()} clashes")
    assert crew.clashes() == 0


TRAINING = f"{sys.executable} -m tests.steps {{logs}}/checkpoint.json {{logs}}/target"


@pytest.mark.parametrize("crew", [(TRAINING, 1)], indirect=True)
def test_a_training_cancelled_at_any_moment_leaves_nothing_and_goes_on_where_it_was(crew):
    """E7: with ranks, data loaders, and a child in a session of its own that may mind no SIGTERM."""
    rng = random.Random(1)
    for _ in trials(50):
        one = crew.ask_for_a_run()
        crew.wait_for_state(one, "PENDING", "RUNNING", seconds=180)
        if rng.random() < 0.6:
            wait_for(crew.is_held, 60)
        time.sleep(rng.uniform(0, 6))
        seen = len(crew.left())
        gone, told = run_is_cancelled(crew, one)
        saw(f"E7: nothing left of {seen} processes after {gone:.1f} s, told as cancelled after {told:.1f} s")
        assert gone <= 15
    assert crew.clashes() == 0
    assert_it_ends_as_if_never_stopped(crew)


def assert_it_ends_as_if_never_stopped(crew: Crew) -> None:
    saved = crew.logs / "checkpoint.json"
    done = json.loads(saved.read_text())["step"] if saved.is_file() else 0
    (crew.logs / "target").write_text(str(done + 100))
    crew.wait_for_state(crew.ask_for_a_run(), "COMPLETED", seconds=90)
    reached = json.loads(Path(crew.logs / "target.reached").read_text())
    assert reached == {"step": done + 100, "number": after(done + 100)}
    saw(f"E7: {done} steps before the last start; after {reached['step']} the same number as never stopped")


@pytest.mark.parametrize("crew", [("sleep 150", 1)], indirect=True)
def test_a_run_that_works_is_not_taken_for_dead(crew):
    """E11: longer than the watch waits, and stopped for 60 s in the middle."""
    for _ in trials(2):
        one = crew.ask_for_a_run()
        crew.at_work(one)
        time.sleep(35)
        with stopped(crew.flows()):
            time.sleep(60)
        crew.wait_for_state(one, *ENDS, seconds=200)
        assert crew.state(one) == "COMPLETED" and "CRASHED" not in crew.history(one)
        saw("E11: late by 60 s, and completed")
