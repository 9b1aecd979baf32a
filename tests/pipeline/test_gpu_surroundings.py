"""Clocks that jump by an hour, a server whose disk is full: row E12 of the table of what may go wrong. Each says what it saw."""
from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.crew import Crew, saw
from tests.orchestra import wait_for

pytestmark = pytest.mark.slow
HOUR = 3600


class Clock:
    """One that processes started with `settings` go by; it can be set. See tests/clock.c."""

    def __init__(self, folder: Path) -> None:
        self.file, library = folder / "clock", folder / "clock.so"
        self.set_ahead(0)
        compile_ = ["cc", "-O1", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("clock.c")]
        subprocess.run(compile_, check=True, capture_output=True)
        self.settings = {"LD_PRELOAD": str(library), "TEST_CLOCK": str(self.file)}

    def set_ahead(self, seconds: int) -> None:
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT)  # in place: it is mapped
        os.pwrite(handle, struct.pack("l", seconds), 0)
        os.close(handle)

    def ahead(self) -> float:
        """By how much such a process is ahead of this one."""
        told = subprocess.run(["date", "+%s"], env={**os.environ, **self.settings}, capture_output=True, text=True, check=True)
        return float(told.stdout) - time.time()


@pytest.mark.skipif(not shutil.which("cc"), reason="a clock to set is made by a C compiler, and there is no cc")
@pytest.mark.parametrize("jump", [HOUR, -HOUR])
@pytest.mark.parametrize("whose", ["the server's", "the workers'", "the same machine's"])
def test_a_clock_that_jumps_by_an_hour_and_back_crashes_nothing(tmp_path, whose, jump):
    """E12: each time for longer than the watch waits."""
    clock = Clock(tmp_path)
    server = {} if whose == "the workers'" else clock.settings
    workers = {} if whose == "the server's" else clock.settings
    crew = Crew(tmp_path / "crew", "sleep 280", server=server, workers=workers)
    with contextlib.closing(crew):
        one = crew.ask_for_a_run()
        crew.at_work(one)
        for ahead in (jump, 0):
            clock.set_ahead(ahead)
            assert abs(clock.ahead() - ahead) < 5
            time.sleep(130)
            assert "CRASHED" not in crew.history(one)
        crew.wait_for_state(one, "COMPLETED", seconds=120)
        following = crew.ask_for_a_run()
        crew.at_work(following)
        saw(f"E12: {whose} clock by {jump:+d} s and back: {' '.join(crew.history(one))}; the next one is at work")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int):
    """A disk of this size at `folder`."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room there is."""
    file = disk / "filler"
    with contextlib.suppress(OSError), open(file, "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    return file


def test_a_full_disk_under_the_server_crashes_and_loses_nothing(tmp_path):
    """E12: full for longer than the watch waits, while a run is at work and another waits."""
    home = tmp_path / "crew" / "server"
    with small_disk(home, megabytes=64):
        crew = Crew(tmp_path / "crew", "sleep 150")
        with contextlib.closing(crew):
            one = crew.ask_for_a_run()
            crew.at_work(one)
            waiting = crew.ask_for_a_run()
            filler = fill(home)
            time.sleep(120)
            filler.unlink()
            crew.wait_for_state(one, "COMPLETED", seconds=240)
            wait_for(lambda: not crew.flows() or crew.state(waiting) == "RUNNING", 60)
            crew.wait_for_state(waiting, "COMPLETED", seconds=300)
            assert "CRASHED" not in crew.history(one) + crew.history(waiting)
            histories = [" ".join(crew.history(run)) for run in (one, waiting)]
            saw(f"E12: full disk: {histories[0]}; the one that waited: {histories[1]}")
