"""Two never write into one place, and nobody is left behind by whoever started it."""
from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from stages import _guard
from stages._guard import end_with, end_with_starters, locked, sole_writer
from thousandwords.errors import UserError
from thousandwords.files import CannotWrite

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
TOLD = "{holder} is at work"


def test_a_lock_names_its_holder_to_the_second_and_is_gone_after_it(tmp_path):
    with locked(tmp_path / "new" / "lock", TOLD):
        assert (tmp_path / "new" / "lock").read_text() == str(os.getpid())
        with pytest.raises(UserError, match=f"^process {os.getpid()} is at work$"), locked(tmp_path / "new" / "lock", TOLD):
            pytest.fail("both hold it")
    assert list((tmp_path / "new").iterdir()) == []
    with locked(tmp_path / "new" / "lock", TOLD):
        pass


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock", TOLD):
        raise KeyboardInterrupt
    with locked(tmp_path / "lock", TOLD):
        pass


@pytest.mark.parametrize("pid", ["", "1", "no number", "own", "4194304"])
def test_a_lock_that_a_dead_process_left_is_taken(tmp_path, pid):
    """Whatever it says, also if its number is now another's: the kernel knows that nobody holds it."""
    (tmp_path / "lock").write_text(str(os.getpid()) if pid == "own" else pid)
    with locked(tmp_path / "lock", TOLD):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_that_was_taken_away_while_one_came_for_it_is_not_held_by_two(tmp_path, monkeypatch):
    """Its holder ends, and a third comes, between this process's open and its lock: it must see the third's file, not the old."""
    path, flock, third = tmp_path / "lock", fcntl.flock, []
    path.write_text("the first")

    def slow(file, how):
        if not third:
            path.unlink()
            third.append(open(path, "a+"))  # noqa: SIM115
            third[0].write("77")
            third[0].flush()
            flock(third[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(UserError, match="^process 77 is at work$"), locked(path, TOLD):
        pytest.fail("two hold it")
    third[0].close()


def test_the_lock_of_an_output_lies_beside_it_and_stays_when_the_output_is_removed(tmp_path):
    out = tmp_path / "data" / "pairs"
    with sole_writer(out):
        out.mkdir()
        assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".pairs.lock", "pairs"]
        out.rmdir()
        again = tmp_path / "data" / ".." / "data" / "pairs"
        sentence = f"^{again} is being written by process {os.getpid()}. Wait for it, or stop it$"
        with pytest.raises(UserError, match=sentence), sole_writer(again):
            pytest.fail("two write")
        with sole_writer(tmp_path / "data" / "tokens"):
            pass


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "Read-only file system"), (errno.ENOLCK, "No locks available")])
def test_a_place_where_nothing_can_be_locked_is_told(tmp_path, monkeypatch, number, words):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CannotWrite, match=f"{tmp_path} cannot be written: {words}"), locked(tmp_path / "lock", TOLD):
        pytest.fail("it is not locked")


def test_on_a_full_disk_a_lock_holds_though_it_cannot_name_its_holder(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "getpid", full)
    refused = pytest.raises(UserError, match="process unknown is at work")
    with locked(tmp_path / "lock", TOLD), refused, locked(tmp_path / "lock", TOLD):
        pytest.fail("both hold it")

HOLDER = """import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print(os.getpid(), file=file, flush=True)
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float, **environment: str) -> subprocess.Popen:
    """A process that holds a lock for some seconds."""
    words = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    process = subprocess.Popen(words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_lock_is_waited_for_where_its_holder_was_left_behind_by_its_dvc(tmp_path):
    """That one keeps a last checkpoint, and ends; whoever runs the same again at once need not know of it."""
    left_behind = holder(tmp_path / "lock", 1, DVC_STAGE="train_generator")
    with locked(tmp_path / "lock", TOLD):
        assert left_behind.wait() == 0
    alive = holder(tmp_path / "lock", 30)
    with pytest.raises(UserError, match=f"^process {alive.pid} is at work$"), locked(tmp_path / "lock", TOLD):
        pytest.fail("both hold it")
    alive.kill()
    alive.wait()


def test_one_that_was_left_behind_and_does_not_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(_guard, "PATIENCE", 0.3)
    left_behind = holder(tmp_path / "lock", 30, DVC_STAGE="train_generator")
    with pytest.raises(UserError, match=f"^process {left_behind.pid} is at work$"), locked(tmp_path / "lock", TOLD):
        pytest.fail("both hold it")
    left_behind.kill()
    left_behind.wait()


# --- ends ------------------------------------------------------------------------------------------------------------


def orphan_of(is_deaf: bool) -> tuple[int, int]:
    """(a process, a pipe that its child keeps open while it lives): the child hangs on the process by `end_with`."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent:
        os.close(writing)
        assert os.read(reading, 5) == b"ready"
        return parent, reading
    own = os.getpid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if is_deaf else signal.SIG_DFL)
        end_with(own)
        os.write(writing, b"ready")
    os.close(writing) if os.getpid() == own else None
    time.sleep(60)
    os._exit(0)


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_process_ends_with_the_one_it_hangs_on(monkeypatch, is_deaf):
    """By SIGTERM, or, where that is not heard, by SIGKILL a little later."""
    monkeypatch.setattr(_guard, "GRACE", 0.3)
    parent, pipe = orphan_of(is_deaf)
    start = time.monotonic()

    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    assert os.read(pipe, 1) == b""  # nobody holds its other end any more
    assert (0.3 if is_deaf else 0) <= time.monotonic() - start < 5


def ancestry(monkeypatch, *commands: str) -> list[int]:
    """Makes this process the child of such commands; the list will hold those it hangs on."""
    hung_on: list[int] = []
    parents = [
        SimpleNamespace(pid=1000 + place, cmdline=lambda words=words: words.split()) for place, words in enumerate(commands)
    ]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    monkeypatch.setattr(_guard, "end_with", lambda *pids: hung_on.extend(pids))
    return hung_on


@pytest.mark.parametrize(
    ("commands", "wanted"),
    [
        (["/bin/bash -c python", "/venv/bin/python /venv/bin/dvc repro", "bash", "sshd"], [1001]),
        (["python -m torch.distributed.run -m x", "python -m dvc repro -s x", "python -m flows.pipeline"], [1000, 1001, 1002]),
        (["torchrun --nnodes 2", "python -X dev -m prefect.flow_engine", "prefect worker start"], [1000, 1001]),
        (["bash", "tmux new -s dvc", "init"], []),
        (["bash", "vim -p params.yaml dvc", "init"], []),
    ],
)
def test_a_stage_hangs_on_dvc_torchrun_and_flows_and_on_no_shell(monkeypatch, commands, wanted):
    hung_on = ancestry(monkeypatch, *commands)
    end_with_starters()
    assert hung_on == wanted


def test_a_stage_whose_starter_died_before_it_looked_does_not_begin(monkeypatch):
    ancestry(monkeypatch, "init")
    end_with_starters()
    monkeypatch.setenv("DVC_STAGE", "train_generator")
    with pytest.raises(UserError, match="what started this process is gone already"):
        end_with_starters()


def test_every_stage_hangs_on_its_starter_before_it_takes_its_locks():
    source = (Path(_guard.__file__).parent / "_stage.py").read_text()
    assert source.index("end_with_starters()") < source.index("_alone(name, options)")
