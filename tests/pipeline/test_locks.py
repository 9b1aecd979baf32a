"""No two processes write to one place, and no process outlives its launcher."""

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

from stages.runtime import locks
from stages.runtime.locks import end_with, end_with_launchers, hold_lock, output_lock
from thousandwords.core.errors import UserError
from thousandwords.core.files import CannotWrite

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
MESSAGE = "{holder} is active"


def test_a_lock_names_its_holder_to_a_second_process_and_is_removed_after_it(tmp_path):
    with hold_lock(tmp_path / "new" / "lock", MESSAGE):
        assert (tmp_path / "new" / "lock").read_text() == str(os.getpid())
        with (
            pytest.raises(UserError, match=f"^process {os.getpid()} is active$"),
            hold_lock(tmp_path / "new" / "lock", MESSAGE),
        ):
            pytest.fail("both hold it")
    assert list((tmp_path / "new").iterdir()) == []
    with hold_lock(tmp_path / "new" / "lock", MESSAGE):
        pass


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), hold_lock(tmp_path / "lock", MESSAGE):
        raise KeyboardInterrupt
    with hold_lock(tmp_path / "lock", MESSAGE):
        pass


@pytest.mark.parametrize("pid", ["", "1", "no number", "own", "4194304"])
def test_a_lock_that_a_dead_process_left_is_taken(tmp_path, pid):
    """Whatever the file says, also if its number is now another process: the kernel knows that no process
    holds it."""
    (tmp_path / "lock").write_text(str(os.getpid()) if pid == "own" else pid)
    with hold_lock(tmp_path / "lock", MESSAGE):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_whose_file_is_removed_meanwhile_is_not_held_by_two(tmp_path, monkeypatch):
    """Its holder ends, and a third comes, between this process's open and its lock: it must see the third's
    file, not the old."""
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
    with pytest.raises(UserError, match="^process 77 is active$"), hold_lock(path, MESSAGE):
        pytest.fail("two hold it")
    third[0].close()


def test_the_lock_of_an_output_lies_beside_it_and_stays_when_the_output_is_removed(tmp_path):
    out = tmp_path / "data" / "pairs"
    with output_lock(out):
        out.mkdir()
        assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".pairs.lock", "pairs"]
        out.rmdir()
        again = tmp_path / "data" / ".." / "data" / "pairs"
        sentence = f"^{again} is being written by process {os.getpid()}. Wait for it, or stop it$"
        with pytest.raises(UserError, match=sentence), output_lock(again):
            pytest.fail("two write")
        with output_lock(tmp_path / "data" / "tokens"):
            pass


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EROFS, "Read-only file system"), (errno.ENOLCK, "No locks available")]
)
def test_a_folder_where_nothing_can_be_locked_is_reported(tmp_path, monkeypatch, number, message):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(CannotWrite, match=f"{tmp_path} cannot be written: {message}"),
        hold_lock(tmp_path / "lock", MESSAGE),
    ):
        pytest.fail("it is not locked")


def test_on_a_full_disk_a_lock_holds_without_a_name(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "getpid", full)
    rejected = pytest.raises(UserError, match="process unknown is active")
    with hold_lock(tmp_path / "lock", MESSAGE), rejected, hold_lock(tmp_path / "lock", MESSAGE):
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
    command = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_lock_is_waited_for_where_its_holder_was_orphan_by_its_dvc(tmp_path):
    """The holder saves a last checkpoint and ends, so the same can be run again at once."""
    orphan = holder(tmp_path / "lock", 1, DVC_STAGE="train_generator")
    with hold_lock(tmp_path / "lock", MESSAGE):
        assert orphan.wait() == 0
    alive = holder(tmp_path / "lock", 30)
    with (
        pytest.raises(UserError, match=f"^process {alive.pid} is active$"),
        hold_lock(tmp_path / "lock", MESSAGE),
    ):
        pytest.fail("both hold it")
    alive.kill()
    alive.wait()


def test_one_that_was_orphan_and_does_not_end_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.3)
    orphan = holder(tmp_path / "lock", 30, DVC_STAGE="train_generator")
    with (
        pytest.raises(UserError, match=f"^process {orphan.pid} is active$"),
        hold_lock(tmp_path / "lock", MESSAGE),
    ):
        pytest.fail("both hold it")
    orphan.kill()
    orphan.wait()


# --- ends ------------------------------------------------------------------------------------------------------------


def parent_and_pipe(ignores_sigterm: bool) -> tuple[int, int]:
    """(a process, a pipe that its child keeps open while it lives): the child ends with the process by
    `end_with`."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent:
        os.close(writing)
        assert os.read(reading, 5) == b"ready"
        return parent, reading
    own = os.getpid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores_sigterm else signal.SIG_DFL)
        end_with(own)
        os.write(writing, b"ready")
    os.close(writing) if os.getpid() == own else None
    time.sleep(60)
    os._exit(0)


@pytest.mark.parametrize("ignores_sigterm", [False, True])
def test_a_process_ends_with_its_launcher(monkeypatch, ignores_sigterm):
    """By SIGTERM, or, if that is ignored, by SIGKILL a little later."""
    monkeypatch.setattr(locks, "GRACE_SECONDS", 0.3)
    parent, pipe = parent_and_pipe(ignores_sigterm)
    start = time.monotonic()

    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    assert os.read(pipe, 1) == b""  # no process holds the other end
    assert (0.3 if ignores_sigterm else 0) <= time.monotonic() - start < 5


def ancestry(monkeypatch, *commands: str) -> list[int]:
    """Make this process the child of such commands; the list will hold the launchers that it ends with."""
    watched: list[int] = []
    parents = [
        SimpleNamespace(pid=1000 + number, cmdline=lambda text=text: text.split())
        for number, text in enumerate(commands)
    ]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    monkeypatch.setattr(locks, "end_with", lambda *pids: watched.extend(pids))
    return watched


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["/bin/bash -c python", "/venv/bin/python /venv/bin/dvc repro", "bash", "sshd"], [1001]),
        (
            ["python -m torch.distributed.run -m x", "python -m dvc repro -s x", "python -m flows.pipeline"],
            [1000, 1001, 1002],
        ),
        (
            ["torchrun --nnodes 2", "python -X dev -m prefect.flow_engine", "prefect worker start"],
            [1000, 1001],
        ),
        (["bash", "tmux new -s dvc", "init"], []),
        (["bash", "vim -p params.yaml dvc", "init"], []),
    ],
)
def test_a_stage_ends_with_dvc_torchrun_and_flows_but_not_with_a_shell(monkeypatch, commands, expected):
    watched = ancestry(monkeypatch, *commands)
    end_with_launchers()
    assert watched == expected


def test_a_stage_whose_launcher_has_already_ended_does_not_start(monkeypatch):
    ancestry(monkeypatch, "init")
    end_with_launchers()
    monkeypatch.setenv("DVC_STAGE", "train_generator")
    with pytest.raises(UserError, match="the process that started this one has already ended"):
        end_with_launchers()


def test_every_stage_watches_its_launcher_before_it_takes_its_locks():
    source = (Path(locks.__file__).parent / "stage.py").read_text()
    assert source.index("end_with_launchers()") < source.index("_locks(name, options)")
