"""Supervisor processes: one run per GPU, and no process left behind by a killed run.

Locks in one process: tests/unit/flows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.workers import gpu_lock, supervisor
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("THOUSANDWORDS_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(gpu_lock, "installed", lambda: {})
    return tmp_path / "locks"


def start_supervisor(*command: str, gpus: int = 0, visible: str = "") -> subprocess.Popen:
    """`flows.workers.supervisor` around a command, in its own session, as a worker starts a flow."""
    line = supervisor.supervised(command, gpus, "a stage")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return result


def number_in(path: Path) -> int:
    """The process number that a command writes into a file."""
    return int(wait_for(lambda: path.is_file() and path.read_text().strip()))


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_run_that_needs_two_gpus_holds_none_while_one_is_taken(monkeypatch):
    """Else two runs that need two would wait for each other for ever."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu_lock.hold(1, "a run"):
        waiting = start_supervisor("true", gpus=2, visible="0,1")
        time.sleep(1)
        for _ in range(20):
            taken = gpu_lock._take(["1"], 1)
            for file in taken.values():
                file.close()
            if taken:
                break
            time.sleep(0.01)
        assert taken and waiting.poll() is None
    assert waiting.wait(20) == 0


# --- no process is left --------------------------------------------------------------------------------------------------


def test_a_supervisor_passes_on_the_exit_code_and_the_output_of_its_command():
    process = start_supervisor("bash", "-c", "echo hello; exit 7")
    assert process.communicate(timeout=20)[0] == "hello\n" and process.returncode == 7


@pytest.mark.parametrize("how", ["the command ends", "SIGTERM", "the group", "the parent is killed"])
def test_no_process_outlives_a_supervisor_not_even_in_its_own_session(tmp_path, how):
    left = tmp_path / "left"
    script = f"setsid sleep 60 & echo $! > {left}; {'sleep 0.3' if how == 'the command ends' else 'sleep 60'}"
    if how == "the parent is killed":
        line = [sys.executable, "-m", "flows.workers.supervisor", "--", "bash", "-c", script]
        parent = subprocess.Popen(["bash", "-c", '"$@"; true', "-", *line], cwd=ROOT, start_new_session=True)
    else:
        parent = start_supervisor("bash", "-c", script)
    orphan = number_in(left)

    if how == "SIGTERM":
        parent.terminate()
    elif how == "the group":
        os.killpg(parent.pid, signal.SIGTERM)
    elif how == "the parent is killed":
        parent.kill()
    parent.wait(20)

    wait_for(lambda: not is_alive(orphan), 5)


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace_time(tmp_path):
    code = "import signal, time, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').write('1'); time.sleep(60)"
    supervise = (
        "import sys; from flows.workers import gpu_lock, supervisor; "
        "gpu_lock.GRACE = 0.5; supervisor.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", supervise, "--", sys.executable, "-c", code, str(tmp_path / "ready")]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    number_in(tmp_path / "ready")
    process.terminate()
    assert process.wait(15) == 137


def test_a_gpu_is_not_free_while_a_process_of_a_killed_run_lives(tmp_path):
    """The supervisor gets a kill -9, so the kernel frees its lock.

    A child in its own session still uses the GPU.
    """
    left = tmp_path / "left"
    first = start_supervisor(
        "bash", "-c", f"setsid sleep 60 & echo $! > {left}; sleep 60", gpus=1, visible="0"
    )
    orphan = number_in(left)
    first.kill()
    first.wait(10)
    assert is_alive(orphan)

    check = f"import sys; from tests.pipeline.test_gpu_lock import is_alive; sys.exit(is_alive({orphan}))"
    second = start_supervisor(sys.executable, "-c", check, gpus=1, visible="0")

    assert second.wait(20) == 0


def test_a_run_waits_for_its_gpu_until_the_run_before_has_ended(tmp_path, locks):
    first = start_supervisor("sleep", "60", gpus=1, visible="0")
    wait_for(lambda: (locks / "0.lock").is_file() and (locks / "0.lock").read_text())
    second = start_supervisor("true", gpus=1, visible="0")
    time.sleep(1)
    assert second.poll() is None
    assert json.loads((locks / "0.lock").read_text())["pid"] == first.pid
    first.terminate()
    assert second.wait(30) == 0


def test_a_suspended_holder_keeps_its_gpu(locks):
    """A lease would run out while its holder is suspended; a lock does not."""
    first = start_supervisor("sleep", "60", gpus=1, visible="0")
    wait_for(lambda: (locks / "0.lock").is_file() and (locks / "0.lock").read_text())
    os.killpg(first.pid, signal.SIGSTOP)
    second = start_supervisor("true", gpus=1, visible="0")
    time.sleep(1.5)
    assert second.poll() is None
    os.killpg(first.pid, signal.SIGCONT)
    first.terminate()
    assert second.wait(30) == 0 and first.wait(1) == 143


@pytest.mark.slow
def test_a_gpu_never_has_two_runs_whatever_is_killed(tmp_path):
    """Several wait for one GPU; supervisors, commands and their children are killed.

    The probe is another kernel lock.
    """
    rng, runs = random.Random(0), int(os.environ.get("THOUSANDWORDS_RUNS", "50"))
    probe = f"exec 9>>{tmp_path}/probe; flock -n 9 || echo >>{tmp_path}/clashes; echo >>{tmp_path}/begun"
    work = f"{probe}; setsid sleep 0.6 & sleep 0.3"
    waiting = [start_supervisor("bash", "-c", work, gpus=1, visible="0") for _ in range(4)]
    kills = started = 0
    while waiting:
        time.sleep(rng.uniform(0.05, 0.4))
        waiting = [process for process in waiting if process.poll() is None]
        if waiting and rng.random() < 0.4:
            process = psutil.Process(rng.choice(waiting).pid)
            family = [process, *process.children(recursive=True)]
            rng.choice(family).kill()
            kills += 1
        while len(waiting) < 4 and (started := started + 1) <= runs - 4:
            waiting.append(start_supervisor("bash", "-c", work, gpus=1, visible="0"))
    begun = len((tmp_path / "begun").read_text().splitlines())
    print(
        f"E5, without Prefect: {runs} runs, {kills} kills, {begun} begun, clashes: {(tmp_path / 'clashes').exists()}"
    )
    assert not (tmp_path / "clashes").exists() and begun > runs // 3


# --- one run per folder ----------------------------------------------------------------------------------------------


def test_a_folder_is_locked_until_the_last_child_of_a_killed_run_has_ended(tmp_path):
    """Else the stages of the next run would meet those that have not ended yet."""
    import fcntl

    code = """if True:
        import subprocess, sys, time
        from flows.workers.run_lock import lock_handles, run_lock
        with run_lock(print), run_lock(print):
            child = subprocess.Popen(["sleep", "60"], pass_fds=lock_handles())
            open("child", "w").write(str(child.pid))
            time.sleep(60)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    child = number_in(tmp_path / "child")
    run.kill()
    run.wait(10)

    with open(tmp_path / ".dvc/tmp/flow.lock") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: not is_alive(child))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
