"""Clocks that jump by an hour, a server whose disk is full: row E12 of the reliability plan.

They print their results.
"""

import contextlib
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.gpu_runs import GpuTestbed, report
from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import wait_for

pytestmark = pytest.mark.slow
HOUR = 3600


class Clock:
    """A clock for processes started with `settings`; it can be set. See tests/helpers/clock.c."""

    def __init__(self, folder: Path) -> None:
        self.file, library = folder / "clock", folder / "clock.so"
        self.set_ahead(0)
        compile_ = ["cc", "-O1", "-shared", "-fPIC", "-o", library, ROOT / "tests/helpers/clock.c"]
        subprocess.run(compile_, check=True, capture_output=True)
        self.settings = {"LD_PRELOAD": str(library), "TEST_CLOCK": str(self.file)}

    def set_ahead(self, seconds: int) -> None:
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT)  # in place: it is mapped
        os.pwrite(handle, struct.pack("l", seconds), 0)
        os.close(handle)

    def ahead(self) -> float:
        """By how many seconds such a process is ahead of this one."""
        text = subprocess.check_output(["date", "+%s"], env={**os.environ, **self.settings}, text=True)
        return float(text) - time.time()


@pytest.mark.skipif(
    not shutil.which("cc"), reason="the settable clock needs a C compiler, and there is no cc"
)
@pytest.mark.parametrize("jump", [HOUR, -HOUR])
@pytest.mark.parametrize("whose", ["the server's", "the workers'", "the same machine's"])
def test_a_clock_that_jumps_by_an_hour_and_back_crashes_nothing(tmp_path, whose, jump):
    """E12: each time for longer than the heartbeat timeout."""
    clock = Clock(tmp_path)
    server = {} if whose == "the workers'" else clock.settings
    workers = {} if whose == "the server's" else clock.settings
    testbed = GpuTestbed(tmp_path / "testbed", "sleep 280", server=server, workers=workers)
    with contextlib.closing(testbed):
        run_id = testbed.create_run()
        testbed.wait_until_working(run_id)
        for ahead in (jump, 0):
            clock.set_ahead(ahead)
            assert abs(clock.ahead() - ahead) < 5
            time.sleep(130)
            assert "CRASHED" not in testbed.history(run_id)
        testbed.wait_for_state(run_id, "COMPLETED", seconds=120)
        following = testbed.create_run()
        testbed.wait_until_working(following)
        states = " ".join(testbed.history(run_id))
        report(f"E12: {whose} clock by {jump:+d} s and back: {states}; the next one works")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int):
    """Mount a disk of this size at `folder`."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"only root may mount a small disk: {result.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """Fill the disk; the file to remove."""
    file = disk / "filler"
    with contextlib.suppress(OSError), open(file, "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    return file


def test_a_full_disk_under_the_server_crashes_and_loses_nothing(tmp_path):
    """E12: full for longer than the heartbeat timeout, while one run works and another waits."""
    home = tmp_path / "testbed" / "server"
    with small_disk(home, megabytes=64):
        testbed = GpuTestbed(tmp_path / "testbed", "sleep 150")
        with contextlib.closing(testbed):
            run_id = testbed.create_run()
            testbed.wait_until_working(run_id)
            waiting = testbed.create_run()
            filler = fill(home)
            time.sleep(120)
            filler.unlink()
            testbed.wait_for_state(run_id, "COMPLETED", seconds=240)
            wait_for(lambda: not testbed.flows() or testbed.state(waiting) == "RUNNING", 60)
            testbed.wait_for_state(waiting, "COMPLETED", seconds=300)
            assert "CRASHED" not in testbed.history(run_id) + testbed.history(waiting)
            histories = [" ".join(testbed.history(run)) for run in (run_id, waiting)]
            report(f"E12: full disk: {histories[0]}; the one that waited: {histories[1]}")
