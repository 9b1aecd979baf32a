"""No two processes write to one place, and no stage outlives its launcher."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from stages.runtime import locks
from stages.runtime.locks import end_with_launchers, hold_lock, output_lock
from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import wait_for
from thousandwords.core.errors import UserError
from thousandwords.core.files import CannotWrite
from thousandwords.core.locks import holder
from thousandwords.core.processes import end_with

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
MESSAGE = "{holder} is active"


def assert_is_held(path: Path, pid: int | str) -> None:
    with pytest.raises(UserError, match=f"^process {pid} is active$"), hold_lock(path, MESSAGE):
        pytest.fail("both hold it")


def test_a_lock_names_its_holder_to_a_second_process_and_is_removed_after_it_whatever_happens(tmp_path):
    path = tmp_path / "new" / "lock"
    for error in (None, KeyboardInterrupt):
        with contextlib.suppress(KeyboardInterrupt), hold_lock(path, MESSAGE):
            assert_is_held(path, os.getpid())
            if error:
                raise error
        assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("left", ["", "no number", '{"pid": 1}', '{"pid": OWN}', "[1"])
def test_a_lock_that_a_dead_process_left_is_taken_whatever_it_says(tmp_path, left):
    """Also if its number is now another process: the kernel knows that no process holds it."""
    (tmp_path / "lock").write_text(left.replace("OWN", str(os.getpid())))
    with hold_lock(tmp_path / "lock", MESSAGE):
        assert_is_held(tmp_path / "lock", os.getpid())


def test_a_lock_whose_file_is_removed_meanwhile_is_not_held_by_two(tmp_path, monkeypatch):
    """Its holder ends, and a third comes, between this process's open and its lock: it must see the third's file."""
    path, flock, third = tmp_path / "lock", fcntl.flock, []
    path.write_text("the first")

    def slow(file, how):
        if not third:
            path.unlink()
            third.append(open(path, "a+"))  # noqa: SIM115
            third[0].write('{"pid": 77777777}')
            third[0].flush()
            flock(third[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    assert_is_held(path, 77777777)
    third[0].close()


def test_the_lock_of_an_output_lies_beside_it_and_stays_when_the_output_is_removed(tmp_path):
    out = tmp_path / "data" / "pairs"
    with output_lock(out), output_lock(tmp_path / "data" / "tokens"):
        out.mkdir()
        assert {path.name for path in out.parent.iterdir()} == {".pairs.lock", ".tokens.lock", "pairs"}
        out.rmdir()
        again = out.parent / ".." / "data" / "pairs"
        sentence = f"^{again} is being written by process {os.getpid()}. Wait for it, or stop it$"
        with pytest.raises(UserError, match=sentence), output_lock(again):
            pytest.fail("two write")


def failing_with(number: int) -> Callable:
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_folder_where_nothing_can_be_locked_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing_with(errno.ENOLCK))
    sentence = f"{tmp_path} cannot be written: No locks available"
    with pytest.raises(CannotWrite, match=sentence), hold_lock(tmp_path / "lock", MESSAGE):
        pytest.fail("it is not locked")


def test_on_a_full_disk_a_lock_holds_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", failing_with(errno.ENOSPC))
    with hold_lock(tmp_path / "lock", MESSAGE):
        assert_is_held(tmp_path / "lock", "unknown")


def python(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """A process that runs the code; returns once it has printed a line."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


HOLD = """if True:
    import sys, time
    from pathlib import Path
    from thousandwords.core.locks import take_lock, write_note
    file = take_lock(Path(sys.argv[1]))
    write_note(file)
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_lock_is_waited_for_where_its_holder_lost_its_dvc_but_not_for_ever(tmp_path, monkeypatch):
    """The holder saves a last checkpoint and ends, so the same can be run again at once."""
    orphan = python(HOLD, tmp_path / "lock", 1, DVC_STAGE="train_generator")
    with hold_lock(tmp_path / "lock", MESSAGE):
        assert orphan.wait() == 0
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.3)
    for environment in ({}, {"DVC_STAGE": "train_generator"}):
        alive = python(HOLD, tmp_path / "lock", 30, **environment)
        assert_is_held(tmp_path / "lock", alive.pid)
        alive.kill()
        alive.wait()


def test_a_folder_is_locked_until_the_last_child_of_a_killed_or_finished_run_has_ended(tmp_path):
    """Else the stages of the next run would meet those that have not ended yet."""
    code = """if True:
        import subprocess, sys, time
        from flows.workers.run_lock import lock_handles, run_lock
        with run_lock(print), run_lock(print):
            subprocess.Popen(["sleep", sys.argv[1]], pass_fds=lock_handles(), stdout=subprocess.DEVNULL)
            print("ready", flush=True)
            time.sleep(float(sys.argv[2]))
    """
    lock = tmp_path / ".dvc/tmp/flow.lock"
    with contextlib.chdir(tmp_path):
        killed = python(code, 3, 60)
        killed.kill()
        finished = python(code.replace("print)", "lambda _: 0)"), 3, 0)  # waits for the child of the first
        assert killed.wait() == -9 and finished.wait() == 0
    assert holder(lock) is not None
    wait_for(lambda: holder(lock) is None, 10)


def parent_and_pipe(ignores_sigterm: bool) -> tuple[int, int]:
    """(a process, a pipe that its child keeps open while it lives): the child ends with the process."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent:
        os.close(writing)
        assert os.read(reading, 5) == b"ready"
        return parent, reading
    own = os.getpid()
    if os.fork():
        os.close(writing)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores_sigterm else signal.SIG_DFL)
        end_with(own, grace=0.3)
        os.write(writing, b"ready")
    time.sleep(60)
    os._exit(0)


@pytest.mark.parametrize("ignores_sigterm", [False, True])
def test_a_process_ends_with_its_launcher(ignores_sigterm):
    """By SIGTERM, or, if that is ignored, by SIGKILL a little later."""
    parent, pipe = parent_and_pipe(ignores_sigterm)
    start = time.monotonic()

    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    assert os.read(pipe, 1) == b""  # no process holds the other end
    assert (0.3 if ignores_sigterm else 0) <= time.monotonic() - start < 5


def ancestry(monkeypatch, *commands: str) -> list[int]:
    """Make this process the child of such commands; the list will hold the launchers that it ends with."""
    watched: list[int] = []
    parents = [SimpleNamespace(pid=pid, cmdline=text.split) for pid, text in enumerate(commands, 1000)]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    monkeypatch.setattr(locks, "end_with", lambda *pids, grace: watched.extend(pids))
    return watched


@pytest.mark.parametrize(
    ("command", "is_launcher"),
    [
        ("/venv/bin/python /venv/bin/dvc repro", True),
        ("python -m dvc repro -s x", True),
        ("python -m torch.distributed.run -m x", True),
        ("torchrun --nnodes 2", True),
        ("python -m flows.pipeline", True),
        ("python -X dev -m prefect.flow_engine", True),
        ("prefect worker start", False),
        ("tmux new -s dvc", False),
        ("vim -p params.yaml dvc", False),
    ],
)
def test_a_stage_ends_with_dvc_torchrun_and_flows_but_not_with_a_shell(monkeypatch, command, is_launcher):
    watched = ancestry(monkeypatch, "bash -c python", command, "sshd")
    end_with_launchers()
    assert watched == [1001] * is_launcher


def test_a_stage_whose_launcher_has_already_ended_does_not_start(monkeypatch):
    ancestry(monkeypatch, "init")
    end_with_launchers()
    monkeypatch.setenv("DVC_STAGE", "train_generator")
    with pytest.raises(UserError, match="the process that started this one has already ended"):
        end_with_launchers()
