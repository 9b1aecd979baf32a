"""Many kills of flows, workers and servers: rows E2, E4, E5, E7, E11 and E12 of the reliability plan.

By default as many trials of each as the target asks for, hours in all; THOUSANDWORDS_KILLS=1 tries each once.
They print results. Quick tests of each row: tests/services/test_gpu_workers.py and test_prefect_flows.py,
tests/pipeline/test_supervisor.py.
"""

import contextlib
import json
import random
import subprocess
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
    lock_database,
    stop_server,
    stopped,
)
from tests.helpers.prefect_server import wait_for
from tests.helpers.steps import after

pytestmark = pytest.mark.slow
UNTIL_GO = "while ! test -f {logs}/go; do sleep 0.05; done; rm {logs}/go"


@pytest.fixture
def testbed(tmp_path, request):
    """One project, or several, with the work that a test names."""
    testbed = GpuTestbed(tmp_path, *request.param)
    yield testbed
    testbed.close()


def trials(count: int) -> range:
    return range(TRIALS or count)


def with_testbed(work: str, projects: int = 1) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("testbed", [(work, projects)], indirect=True)


@with_testbed(UNTIL_GO)
@pytest.mark.parametrize("moment", ["pending", "at start", "working", "at the end", "while it is cancelled"])
def test_the_run_of_a_dead_machine_is_crashed_in_two_minutes_and_the_next_one_starts(testbed, moment):
    """E2: no process is left to report it to Prefect; the only manual step is to start workers again."""
    rng = random.Random(moment)
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
        works = time.monotonic() - start
        print(f"E2 {moment}: {state}, {expected} after {ended:.0f} s, the next works after {works:.0f} s")
        kill(testbed.flows())
        testbed.wait_for_state(following, "CRASHED", "FAILED", seconds=30)
        wait_for(lambda: not testbed.is_held(), 30)
    assert testbed.count("clashes") == 0


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


FAILURES = [
    (("sleep $(shuf -i 30-90 -n 1)",), stop_server, 60),
    (("sleep $(shuf -i 10-60 -n 1)",), lock_database, 30),
]


@pytest.mark.parametrize(("testbed", "fail", "seconds"), FAILURES, indirect=["testbed"])
def test_a_run_completes_although_its_server_does_not_answer(testbed, fail, seconds):
    """E4: the server is killed for a minute, or its database locked for half a minute; runs end in that time."""
    for _ in trials(10):
        run_id = testbed.create_run()
        testbed.wait_until_working(run_id)
        fail(testbed, seconds)
        back = time.monotonic()
        testbed.wait_for_state(run_id, "COMPLETED", seconds=180)
        wait_for(lambda: not testbed.flows(), 30)
        assert testbed.history(run_id)[-1] == "COMPLETED" and "CRASHED" not in testbed.history(run_id)
        print(f"E4 {fail.__name__}: {seconds} s; completed {time.monotonic() - back:.0f} s later")
    assert testbed.count("clashes") == 0 and testbed.count("begun") == len(trials(10))


@with_testbed("setsid sleep 1.5 & sleep 1", projects=3)
def test_a_gpu_never_has_two_runs_whatever_is_killed(testbed):
    """E5: three workers that all use GPU 0; flows, supervisors and stages are killed or stopped at random."""
    rng, runs = random.Random(0), (TRIALS or 10) * 5
    run_ids = [testbed.create_run() for _ in range(runs)]
    kills, stops, deadline = 0, 0, time.monotonic() + 30 * runs
    while set(testbed.states(run_ids)) - set(ENDS):
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.5, 3))
        name = rng.choice(["prefect.engine", "flows.workers.supervisor", "dvc --wait"])
        if rng.random() < 0.4 and (processes := testbed.processes(name)):
            kill([rng.choice(processes)])
            kills += 1
        elif rng.random() < 0.2 and (processes := testbed.processes("flows.workers.supervisor")):
            with stopped([rng.choice(processes)]):
                time.sleep(rng.uniform(1, 5))
            stops += 1
    print(f"E5: {runs} runs, {kills} kills, {stops} stops")
    assert testbed.count("clashes") == 0 and testbed.count("begun") > runs // 3


@with_testbed(UNTIL_GO, projects=2)
def test_a_suspended_holder_keeps_its_gpu_for_longer_than_the_heartbeat_timeout(testbed):
    """E5: Prefect counts the first run as dead and starts the next one; the kernel's lock makes it wait."""
    for _ in range(min(len(trials(3)), 3)):
        run_id, before = testbed.create_run(), testbed.count("begun")
        testbed.wait_until_working(run_id)
        with stopped([*testbed.flows(), *testbed.processes("flows.workers.supervisor"), *testbed.on_gpu()]):
            following = testbed.create_run()
            testbed.wait_for_state(run_id, "CRASHED", seconds=150)
            testbed.wait_for_state(following, "RUNNING", seconds=60)
            time.sleep(20)
            assert testbed.count("begun") == before + 1
        (testbed.logs / "go").touch()
        wait_for(
            lambda before=before: testbed.count("begun") == before + 2, 60, "the next stage does not begin"
        )
        (testbed.logs / "go").touch()
        testbed.wait_for_state(following, "COMPLETED", seconds=60)
    assert testbed.count("clashes") == 0


@with_testbed("sleep 150")
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


@with_testbed(f"{sys.executable} -m tests.helpers.steps {{logs}}/checkpoint.json {{logs}}/target")
def test_a_training_cancelled_at_any_moment_leaves_no_process_and_resumes_where_it_was(testbed):
    """E7: with ranks, data loaders, and a child in its own session that may ignore SIGTERM."""
    rng = random.Random(1)
    for _ in trials(50):
        run_id = testbed.create_run()
        testbed.wait_for_state(run_id, "PENDING", "RUNNING", seconds=180)
        if rng.random() < 0.6:
            wait_for(testbed.is_held, 60)
        time.sleep(rng.uniform(0, 6))
        gone, cancelled = cancel_run(testbed, run_id)
        print(f"E7: no process left after {gone:.1f} s, reported as cancelled after {cancelled:.1f} s")
        assert gone <= 15
    assert testbed.count("clashes") == 0
    assert_it_ends_as_if_never_stopped(testbed)


def assert_it_ends_as_if_never_stopped(testbed: GpuTestbed) -> None:
    saved = testbed.logs / "checkpoint.json"
    step = json.loads(saved.read_text())["step"] if saved.is_file() else 0
    (testbed.logs / "target").write_text(str(step + 100))
    testbed.wait_for_state(testbed.create_run(), "COMPLETED", seconds=90)
    reached = json.loads((testbed.logs / "target.reached").read_text())
    assert reached == {"step": step + 100, "number": after(step + 100)}


@contextlib.contextmanager
def small_disk(folder: Path):
    """Mount a disk of 64 MB at `folder`."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"only root may mount a small disk: {result.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_under_the_server_crashes_and_loses_nothing(tmp_path):
    """E12: full for longer than the heartbeat timeout, while one run works and another waits."""
    home = tmp_path / "testbed" / "server"
    with small_disk(home), contextlib.closing(GpuTestbed(tmp_path / "testbed", "sleep 150")) as testbed:
        run_id = testbed.create_run()
        testbed.wait_until_working(run_id)
        waiting = testbed.create_run()
        filler = home / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        time.sleep(120)
        filler.unlink()
        testbed.wait_for_state(run_id, "COMPLETED", seconds=240)
        wait_for(lambda: not testbed.flows() or testbed.state(waiting) == "RUNNING", 60)
        testbed.wait_for_state(waiting, "COMPLETED", seconds=300)
        assert "CRASHED" not in testbed.history(run_id) + testbed.history(waiting)
