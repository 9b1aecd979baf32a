"""Supervisor processes: one run per GPU, and no process left behind by a killed run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.workers import gpu_lock, supervisor
from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import wait_for


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THOUSANDWORDS_GPU_LOCKS", str(tmp_path / "locks"))


def start_supervisor(*command: str, gpus: int = 0, visible: str = "") -> subprocess.Popen:
    """`flows.workers.supervisor` around a command, in its own session, as a worker starts a flow."""
    line = supervisor.supervised(command, gpus, "a stage")
    own = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def number_in(path: Path) -> int:
    """The process number that a command writes into a file."""
    return int(wait_for(lambda: path.is_file() and path.read_text().strip(), 20))


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_supervisor_passes_on_the_exit_code_and_the_output_of_its_command():
    process = start_supervisor("bash", "-c", "echo hello; exit 7")
    assert process.communicate(timeout=20)[0] == "hello\n" and process.returncode == 7


@pytest.mark.parametrize(
    "how", ["the command ends", "SIGTERM", "SIGHUP to the group", "its parent is killed"]
)
def test_no_process_outlives_a_supervisor_not_even_in_its_own_session(tmp_path, how):
    left = tmp_path / "left"
    script = f"setsid sleep 60 & echo $! > {left}; {'sleep 0.3' if how == 'the command ends' else 'sleep 60'}"
    if how == "its parent is killed":
        line = [sys.executable, "-m", "flows.workers.supervisor", "--", "bash", "-c", script]
        parent = subprocess.Popen(["bash", "-c", '"$@"; true', "-", *line], cwd=ROOT, start_new_session=True)
    else:
        parent = start_supervisor("bash", "-c", script)
    orphan = number_in(left)

    if how == "SIGTERM":
        parent.terminate()
    elif how == "SIGHUP to the group":
        os.killpg(parent.pid, signal.SIGHUP)
    elif how == "its parent is killed":
        parent.kill()
    parent.wait(20)

    wait_for(lambda: not is_alive(orphan), 10)


IMPATIENT = "import sys; from flows.workers import gpu_lock, supervisor; gpu_lock.GRACE = 0.5; supervisor.main(sys.argv[1:])"


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace_time(tmp_path):
    stubborn = f"trap '' TERM; echo 1 > {tmp_path}/ready; while true; do sleep 1; done"
    command = [sys.executable, "-c", IMPATIENT, "--", "sh", "-c", stubborn]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    number_in(tmp_path / "ready")
    process.terminate()
    assert process.wait(15) == 137


def test_a_supervisor_whose_parent_has_already_ended_starts_nothing(tmp_path):
    command = [sys.executable, "-m", "flows.workers.supervisor", "--parent", "1", "touch", tmp_path / "begun"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "the parent of this process has ended already" in result.stderr
    assert not (tmp_path / "begun").exists()


def test_a_run_that_needs_two_gpus_holds_none_while_one_is_taken(monkeypatch):
    """Else two runs that need two would wait for each other for ever."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu_lock.hold(1, "a run"):
        waiting = start_supervisor("true", gpus=2, visible="0,1")
        time.sleep(1)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with gpu_lock.hold(1, "another"):
            assert waiting.poll() is None
    assert waiting.wait(20) == 0


def test_a_gpu_is_not_free_while_a_process_of_a_killed_run_lives(tmp_path):
    """A kill -9 of the supervisor frees its lock, but a child in its own session still uses the GPU."""
    left = tmp_path / "left"
    script = f"setsid sleep 60 & echo $! > {left}; sleep 60"
    first = start_supervisor("bash", "-c", script, gpus=1, visible="0")
    orphan = number_in(left)
    first.kill()
    first.wait(10)
    assert is_alive(orphan)

    second = start_supervisor("sh", "-c", f"! grep -q sleep /proc/{orphan}/cmdline", gpus=1, visible="0")

    assert second.wait(20) == 0


def test_a_run_waits_for_its_gpu_until_the_run_before_has_ended_also_while_that_is_suspended():
    """A lease would run out while its holder is suspended; a lock does not."""
    first = start_supervisor("sleep", "60", gpus=1, visible="0")
    wait_for(lambda: gpu_lock.holders(["0"]) == [f"GPU 0: a stage, process {first.pid}, for 0 min"], 20)
    os.killpg(first.pid, signal.SIGSTOP)
    second = start_supervisor("true", gpus=1, visible="0")
    time.sleep(1.5)
    assert second.poll() is None
    os.killpg(first.pid, signal.SIGCONT)
    first.terminate()
    assert second.wait(30) == 0 and first.wait(1) == 143
