"""Many kills of flows, workers and servers: rows E1 to E5, E7 and E11 of the reliability plan.

By default as many trials of each as the target asks for, hours in all; THOUSANDWORDS_KILLS=1 tries each once.
They print results. Rows E1 and E3 are in tests/services/test_gpu_workers.py; clocks and
disks (E12) are in tests/pipeline/test_gpu_surroundings.py.
"""

import json
import random
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.gpu_runs import (
    ENDS,
    TRIALS,
    GpuTestbed,
    cancel_run,
    kill,
    kill_worker,
    lock_database,
    report,
    stop_server,
    stopped,
)
from tests.helpers.prefect_server import wait_for
from tests.helpers.steps import after

pytestmark = pytest.mark.slow
UNTIL_GO = "while ! test -f {logs}/go; do sleep 0.05; done; rm {logs}/go"


@pytest.fixture
def testbed(tmp_path, request):
    work, projects = getattr(request, "param", ("sleep 600", 1))
    testbed = GpuTestbed(tmp_path, work, projects)
    yield testbed
    testbed.close()


def trials(count: int) -> range:
    return range(TRIALS or count)


@pytest.mark.parametrize("testbed", [(UNTIL_GO, 1)], indirect=True)
@pytest.mark.parametrize("moment", ["pending", "at start", "working", "at the end", "while it is cancelled"])
def test_the_run_of_a_dead_machine_is_crashed_in_two_minutes_and_the_next_one_starts(testbed, moment):
    """E2: no process is left to report it to Prefect; the only manual step is to start workers again."""
    rng, num_complete = random.Random(moment), 0
    for _ in trials(10):
        run_id = testbed.create_run()
        reach(testbed, run_id, moment, rng)
        start = time.monotonic()
        kill(testbed.machine())
        time.sleep(0.5)
        state = testbed.state(run_id)
        testbed.start_workers()
        following = testbed.create_run()
        expected = {"COMPLETED": "COMPLETED", "CANCELLING": "CANCELLED"}.get(state, "CRASHED")
        testbed.wait_for_state(run_id, expected, seconds=120 - (time.monotonic() - start))
        ended = time.monotonic() - start
        testbed.wait_until_working(following, 150 - ended)
        num_complete += state == "COMPLETED"
        report(
            f"E2 {moment}: {state}, {expected} after {ended:.0f} s, the next works after {time.monotonic() - start:.0f} s"
        )
        kill(testbed.flows())
        testbed.wait_for_state(following, "CRASHED", "FAILED", seconds=30)
        wait_for(lambda: not testbed.is_held(), 30)
    report(f"E2 {moment}: {num_complete} had reported to the server that they were complete")
    assert testbed.clashes() == 0


def reach(testbed: GpuTestbed, run_id: str, moment: str, rng: random.Random) -> None:
    """Wait until the run is there.

    "at the end" is any moment from the end of its last stage to its last message.
    """
    if moment == "pending":
        testbed.wait_for_state(run_id, "PENDING", "RUNNING", seconds=180)
    elif moment == "at start":
        testbed.wait_for_state(run_id, "RUNNING", seconds=180)
    else:
        testbed.wait_until_working(run_id)
    if moment == "at the end":
        (testbed.logs / "go").touch()
        wait_for(lambda: not testbed.is_held(), 20)
        time.sleep(rng.uniform(0, 3))
    if moment == "while it is cancelled":
        testbed.cancel(run_id)


def test_a_flow_whose_worker_is_killed_before_it_began_ends_itself_in_a_minute(testbed):
    """E3."""
    for _ in trials(10):
        report(f"E3 before it began: no process was left after {kill_worker(testbed, is_early=True):.1f} s")
    assert testbed.clashes() == 0


FAILURES = [
    (("sleep $(shuf -i 30-90 -n 1)", 1), stop_server, 60),
    (("sleep $(shuf -i 10-60 -n 1)", 1), lock_database, 30),
]


@pytest.mark.parametrize(("testbed", "fail", "seconds"), FAILURES, indirect=["testbed"])
def test_a_run_completes_although_its_server_does_not_answer(testbed, fail, seconds):
    """E4: the server is killed for a minute, or its database locked for half a minute.

    Processes runs end in that time.
    """
    for _ in trials(10):
        run_id = testbed.create_run()
        testbed.wait_until_working(run_id)
        fail(testbed, seconds)
        back = time.monotonic()
        testbed.wait_for_state(run_id, "COMPLETED", seconds=180)
        wait_for(lambda: not testbed.flows(), 30)
        assert testbed.history(run_id)[-1] == "COMPLETED" and "CRASHED" not in testbed.history(run_id)
        report(f"E4 {fail.__name__}: {seconds} s; completed {time.monotonic() - back:.0f} s later")
    assert testbed.clashes() == 0 and testbed.num_begun() == len(trials(10))


@pytest.mark.parametrize("testbed", [("setsid sleep 1.5 & sleep 1", 3)], indirect=True)
def test_a_gpu_never_has_two_runs_whatever_is_killed(testbed):
    """E5: three workers that all use GPU 0; flows, supervisors and stages are killed or stopped at random."""
    rng, runs = random.Random(0), (TRIALS or 10) * 5
    run_ids = [testbed.create_run() for _ in range(runs)]
    kills, stops, deadline = 0, 0, time.monotonic() + 30 * runs
    while set(testbed.states(run_ids)) - set(ENDS):
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.5, 3))
        if rng.random() < 0.4 and (
            processes := testbed.processes(
                rng.choice(["prefect.engine", "flows.workers.supervisor", "dvc --wait"])
            )
        ):
            kill([rng.choice(processes)])
            kills += 1
        elif rng.random() < 0.2 and (processes := testbed.processes("flows.workers.supervisor")):
            with stopped([rng.choice(processes)]):
                time.sleep(rng.uniform(1, 5))
            stops += 1
    states = testbed.states(run_ids)
    report(
        f"E5: {runs} runs, {kills} kills, {stops} stops, {testbed.num_begun()} stages begun, {testbed.clashes()} clashes, "
        f"{ {name: states.count(name) for name in set(states)} }"
    )
    assert testbed.clashes() == 0 and testbed.num_begun() > runs // 3


@pytest.mark.parametrize("testbed", [(UNTIL_GO, 2)], indirect=True)
def test_a_suspended_holder_keeps_its_gpu_for_longer_than_the_heartbeat_timeout(testbed):
    """E5: Prefect counts the first run as dead and starts the next one; the kernel's lock makes it wait."""
    for _ in range(min(len(trials(3)), 3)):
        run_id, before = testbed.create_run(), testbed.num_begun()
        testbed.wait_until_working(run_id)
        with stopped([*testbed.flows(), *testbed.processes("flows.workers.supervisor"), *testbed.on_gpu()]):
            following = testbed.create_run()
            testbed.wait_for_state(run_id, "CRASHED", seconds=150)
            testbed.wait_for_state(following, "RUNNING", seconds=60)
            time.sleep(20)
            assert testbed.num_begun() == before + 1
        (testbed.logs / "go").touch()
        wait_for(lambda before=before: testbed.num_begun() == before + 2, 60, "the next stage does not begin")
        (testbed.logs / "go").touch()
        testbed.wait_for_state(following, "COMPLETED", seconds=60)
        report(
            f"E5: the suspended run is {testbed.state(run_id)}, the next one began after it; {testbed.clashes()} clashes"
        )
    assert testbed.clashes() == 0


TRAINING = f"{sys.executable} -m tests.helpers.steps {{logs}}/checkpoint.json {{logs}}/target"


@pytest.mark.parametrize("testbed", [(TRAINING, 1)], indirect=True)
def test_a_training_cancelled_at_any_moment_leaves_no_process_and_resumes_where_it_was(testbed):
    """E7: with ranks, data loaders, and a child in its own session that may ignore SIGTERM."""
    rng = random.Random(1)
    for _ in trials(50):
        run_id = testbed.create_run()
        testbed.wait_for_state(run_id, "PENDING", "RUNNING", seconds=180)
        if rng.random() < 0.6:
            wait_for(testbed.is_held, 60)
        time.sleep(rng.uniform(0, 6))
        num_processes = len(testbed.left())
        gone, cancelled = cancel_run(testbed, run_id)
        report(
            f"E7: none of {num_processes} processes left after {gone:.1f} s, reported as cancelled after {cancelled:.1f} s"
        )
        assert gone <= 15
    assert testbed.clashes() == 0
    assert_it_ends_as_if_never_stopped(testbed)


def assert_it_ends_as_if_never_stopped(testbed: GpuTestbed) -> None:
    saved = testbed.logs / "checkpoint.json"
    step = json.loads(saved.read_text())["step"] if saved.is_file() else 0
    (testbed.logs / "target").write_text(str(step + 100))
    testbed.wait_for_state(testbed.create_run(), "COMPLETED", seconds=90)
    reached = json.loads(Path(testbed.logs / "target.reached").read_text())
    assert reached == {"step": step + 100, "number": after(step + 100)}
    report(
        f"E7: {step} steps before the last start; after {reached['step']} the same number as never stopped"
    )


@pytest.mark.parametrize("testbed", [("sleep 150", 1)], indirect=True)
def test_a_working_run_is_not_marked_as_dead(testbed):
    """E11: longer than the heartbeat timeout, and suspended for 60 s in the middle."""
    for _ in trials(2):
        run_id = testbed.create_run()
        testbed.wait_until_working(run_id)
        time.sleep(35)
        with stopped(testbed.flows()):
            time.sleep(60)
        testbed.wait_for_state(run_id, *ENDS, seconds=200)
        assert testbed.state(run_id) == "COMPLETED" and "CRASHED" not in testbed.history(run_id)
        report("E11: late by 60 s, and completed")
