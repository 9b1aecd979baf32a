"""One run per GPU, by a kernel lock: whatever Prefect believes, and whatever a run that was killed left behind."""
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

from flows import gpu
from thousandwords.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("THOUSANDWORDS_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(gpu, "installed", lambda: {})
    return tmp_path / "locks"


def keeper(*command: str, gpus: int = 0, shows: str = "", **more: str) -> subprocess.Popen:
    """`flows.keeper` around a command, in a session of its own as a worker starts a flow."""
    words = [sys.executable, "-m", "flows.keeper", "--gpus", str(gpus), "--what", "a stage", "--", *command]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": shows, "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(what, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


def number_in(path: Path) -> int:
    """The process number that a command has written into a file."""
    return int(wait_for(lambda: path.is_file() and path.read_text().strip()))


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# --- which GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "wanted"), [("0", ["0"]), ("1, 3", ["1", "3"]), ("", []), ("-1", []), ("GPU-8d2f", ["GPU-8d2f"])]
)
def test_a_process_sees_the_gpus_that_its_environment_shows(shown, wanted):
    assert gpu.visible({"CUDA_VISIBLE_DEVICES": shown}) == wanted


def test_without_a_word_on_it_all_that_the_driver_lists_are_seen(monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda: {"0": "GPU-aa", "1": "GPU-bb"})
    assert gpu.visible({}) == ["0", "1"]


def test_two_runs_get_two_gpus_and_each_is_told_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu.held(1, "first") as first, gpu.held(1, "second") as second:
        assert first.environment()["CUDA_VISIBLE_DEVICES"] == "0"
        assert second.environment()["CUDA_VISIBLE_DEVICES"] == "1"
        assert gpu.holders(["0"]) == [f"GPU 0: first, process {os.getpid()}, for 0 min"]
    assert gpu.holders(["0", "1"]) == ["GPU 0 is free", "GPU 1 is free"]


def test_an_index_and_a_uuid_of_one_gpu_are_one_lock(monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda: {"0": "GPU-aa"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with gpu.held(1, "a run"):
        assert gpu._take(["GPU-aa"], 1) == {}


def test_what_needs_no_gpu_sees_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with gpu.held(0, "a stage") as holding:
        assert holding.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_a_machine_without_gpus_runs_the_stage_on_its_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpu.held(2, "train_generator") as holding:
        assert holding.gpus == ()


def test_more_gpus_than_are_to_be_seen_are_refused_at_once(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    told = r"^train_generator wants 2 GPUs, but CUDA_VISIBLE_DEVICES shows 1 \(5\)\. Ask for fewer in flows/placement\.yaml"
    with pytest.raises(UserError, match=told), gpu.held(2, "train_generator"):
        pytest.fail("it began")


def test_who_wants_two_and_finds_one_keeps_none_meanwhile(monkeypatch):
    """Else two that want two would wait for each other for ever."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu.held(1, "a run"):
        waiting = keeper("true", gpus=2, shows="0,1")
        time.sleep(1)
        for _ in range(20):
            taken = gpu._take(["1"], 1)
            for file in taken.values():
                file.close()
            if taken:
                break
            time.sleep(0.01)
        assert taken and waiting.poll() is None
    assert waiting.wait(20) == 0


# --- nothing is left --------------------------------------------------------------------------------------------------


def test_a_keeper_gives_on_the_code_and_the_words_of_its_command():
    process = keeper("bash", "-c", "echo hello; exit 7")
    assert process.communicate(timeout=20)[0] == "hello\n" and process.returncode == 7


@pytest.mark.parametrize("how", ["the command ends", "SIGTERM", "the group", "the starter is killed"])
def test_nothing_outlives_a_keeper_not_even_in_a_session_of_its_own(tmp_path, how):
    left = tmp_path / "left"
    script = f"setsid sleep 60 & echo $! > {left}; {'sleep 0.3' if how == 'the command ends' else 'sleep 60'}"
    if how == "the starter is killed":
        line = [sys.executable, "-m", "flows.keeper", "--", "bash", "-c", script]
        starter = subprocess.Popen(["bash", "-c", '"$@"; true', "-", *line], cwd=ROOT, start_new_session=True)
    else:
        starter = keeper("bash", "-c", script)
    orphan = number_in(left)

    if how == "SIGTERM":
        starter.terminate()
    elif how == "the group":
        os.killpg(starter.pid, signal.SIGTERM)
    elif how == "the starter is killed":
        starter.kill()
    starter.wait(20)

    wait_for(lambda: not is_alive(orphan), 5)


def test_a_command_that_is_deaf_to_sigterm_is_killed_in_the_end(tmp_path):
    code = "import signal, time, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').write('1'); time.sleep(60)"
    keep = "import sys; from flows import gpu, keeper; gpu.GRACE = 0.5; keeper.main(sys.argv[1:])"
    words = [sys.executable, "-c", keep, "--", sys.executable, "-c", code, str(tmp_path / "ready")]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    number_in(tmp_path / "ready")
    process.terminate()
    assert process.wait(15) == 137


def test_a_gpu_is_not_given_on_while_anything_of_a_killed_run_lives(tmp_path):
    """The keeper gets a kill -9, so the kernel frees its lock; a child in a session of its own is still at work on the GPU."""
    left = tmp_path / "left"
    first = keeper("bash", "-c", f"setsid sleep 60 & echo $! > {left}; sleep 60", gpus=1, shows="0")
    orphan = number_in(left)
    first.kill()
    first.wait(10)
    assert is_alive(orphan)

    check = f"import sys; from tests.test_gpu import is_alive; sys.exit(is_alive({orphan}))"
    second = keeper(sys.executable, "-c", check, gpus=1, shows="0")

    assert second.wait(20) == 0


def test_a_run_waits_for_its_gpu_until_the_one_before_has_ended(tmp_path, locks):
    first = keeper("sleep", "60", gpus=1, shows="0")
    wait_for(lambda: (locks / "0.lock").is_file() and (locks / "0.lock").read_text())
    second = keeper("true", gpus=1, shows="0")
    time.sleep(1)
    assert second.poll() is None
    assert json.loads((locks / "0.lock").read_text())["pid"] == first.pid
    first.terminate()
    assert second.wait(30) == 0


def test_a_stopped_holder_keeps_its_gpu_however_long_it_is_not_heard_of(locks):
    """A lease would run out while its holder sleeps; a lock does not."""
    first = keeper("sleep", "60", gpus=1, shows="0")
    wait_for(lambda: (locks / "0.lock").is_file() and (locks / "0.lock").read_text())
    os.killpg(first.pid, signal.SIGSTOP)
    second = keeper("true", gpus=1, shows="0")
    time.sleep(1.5)
    assert second.poll() is None
    os.killpg(first.pid, signal.SIGCONT)
    first.terminate()
    assert second.wait(30) == 0 and first.wait(1) == 143


@pytest.mark.slow
def test_never_two_runs_on_a_gpu_whatever_is_killed(tmp_path):
    """Many come for one GPU at once; keepers, commands and their children are killed. The probe is another kernel lock."""
    rng, runs = random.Random(0), int(os.environ.get("THOUSANDWORDS_RUNS", "50"))
    probe = f"exec 9>>{tmp_path}/probe; flock -n 9 || echo >>{tmp_path}/clashes; echo >>{tmp_path}/begun"
    work = f"{probe}; setsid sleep 0.6 & sleep 0.3"
    waiting = [keeper("bash", "-c", work, gpus=1, shows="0") for _ in range(4)]
    kills = started = 0
    while waiting:
        time.sleep(rng.uniform(0.05, 0.4))
        waiting = [one for one in waiting if one.poll() is None]
        if waiting and rng.random() < 0.4:
            one = rng.choice(waiting)
            family = [psutil.Process(one.pid), *psutil.Process(one.pid).children(recursive=True)]
            rng.choice(family).kill()
            kills += 1
        while len(waiting) < 4 and (started := started + 1) <= runs - 4:
            waiting.append(keeper("bash", "-c", work, gpus=1, shows="0"))
    begun = len((tmp_path / "begun").read_text().splitlines())
    print(f"E5, without Prefect: {runs} runs, {kills} kills, {begun} begun, clashes: {(tmp_path / 'clashes').exists()}")
    assert not (tmp_path / "clashes").exists() and begun > runs // 3


# --- one run in a folder ----------------------------------------------------------------------------------------------


def test_a_folder_is_taken_until_the_last_keeper_of_a_killed_run_has_ended(tmp_path):
    """The next run's stages would be refused by those that still end."""
    import fcntl

    code = """if True:
        import subprocess, sys, time
        from flows._alone import alone, held_places
        with alone(print), alone(print):
            kept = subprocess.Popen(["sleep", "60"], pass_fds=held_places())
            open("kept", "w").write(str(kept.pid))
            time.sleep(60)
    """
    run = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    kept = number_in(tmp_path / "kept")
    run.kill()
    run.wait(10)

    with open(tmp_path / ".dvc/tmp/flow.lock") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(kept, signal.SIGKILL)
        wait_for(lambda: not is_alive(kept))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
