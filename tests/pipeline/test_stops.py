"""`make run` and stages are stopped: by Ctrl-C, SIGTERM, a closed terminal, or a kill -9. No process is left."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.prefect_server import environment, processes_in, run, tiny_project, wait_for
from thousandwords.core.processes import STOP_SIGNALS, on_signals

# the way of a stage: a signal asks for a last checkpoint
SAVING = """if True:
    import sys, time
    from thousandwords.core.processes import STOP_SIGNALS, on_signals
    signals = []
    with on_signals(signals.append, 2, *STOP_SIGNALS):
        open("begun", "w")
        while not signals:
            time.sleep(0.1)
            print("step", file=sys.stderr, flush=True)
        time.sleep(1)
        print("saved", flush=True)
        open("saved", "w")
"""
STUBBORN = "trap '' INT; setsid sleep 60 & sleep 60"


@contextlib.contextmanager
def terminal(project: Path, *command: str) -> Iterator[int]:
    """A terminal with a shell that runs the command."""
    screen, inside = pty.openpty()
    shell = ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), inside)
    process = subprocess.Popen(shell, cwd=project, env=environment(project / ".prefect"), **streams)
    os.close(inside)
    os.write(screen, (" ".join(command) + "\n").encode())
    try:
        yield screen
    finally:
        with contextlib.suppress(OSError):
            os.close(screen)
        for left in left_in(project):
            left.kill()
        process.wait(10)


def left_in(project: Path) -> list[psutil.Process]:
    """All processes that work in the project, but the shell of the terminal."""
    return processes_in(project, without="--norc")


@pytest.mark.parametrize("how", ["the terminal is closed", "Ctrl-C", "SIGTERM", "kill -9"])
def test_a_stopped_run_saves_and_leaves_no_process_however_it_is_stopped(tmp_path, how):
    """The other stage ignores SIGINT, as in the background of a script, and has a child in its own session."""
    stages = {"saving": {"cmd": f"{sys.executable} saving.py"}, "stubborn": {"cmd": STUBBORN}}
    project = tiny_project(tmp_path, stages)
    (project / "saving.py").write_text(SAVING)
    with terminal(project, sys.executable, "-m flows.run_local; echo $? > code") as screen:
        wait_for((project / "begun").exists, 90)
        sleeps = wait_for(lambda: [p for p in left_in(project) if p.name() == "sleep"][1:], 60)
        start = time.monotonic()
        (running,) = [p for p in left_in(project) if p.cmdline()[1:] == ["-m", "flows.run_local"]]
        if how == "the terminal is closed":
            os.close(screen)
        elif how == "Ctrl-C":
            os.write(screen, b"\x03")
        else:
            running.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
        wait_for(lambda: not left_in(project), 20, f"{sleeps} are left")
    assert (project / "saved").exists() or how == "kill -9"  # then its output has no reader
    if how == "SIGTERM":
        assert (project / "code").read_text() == "143\n"
        (project / "dvc.yaml").write_text("stages: {saving: {cmd: touch again}}")
        assert run(project, "flows.run_local").returncode == 0  # the locks of DVC are free again
    print(f"{how}: no process after {time.monotonic() - start:.1f} s")


def test_a_stage_in_a_closed_terminal_saves_and_ends(tmp_path):
    """As `dvc repro` starts it: in the group of the terminal, which it prints to."""
    project = tiny_project(tmp_path, {"saving": {"cmd": f"{sys.executable} saving.py"}})
    (project / "saving.py").write_text(SAVING)
    with terminal(project, sys.executable, "-m", "dvc", "repro") as screen:
        wait_for((project / "begun").exists, 90)
        os.close(screen)
        wait_for(lambda: not left_in(project), 20)
    assert (project / "saved").exists()


def test_a_process_under_nohup_goes_on(monkeypatch):
    before, signals = signal.signal(signal.SIGHUP, signal.SIG_IGN), []
    with on_signals(signals.append, *STOP_SIGNALS):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGHUP, before)
    assert signals == [signal.SIGTERM]
