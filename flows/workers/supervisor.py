"""python -m flows.keeper --gpus 1 -- COMMAND: runs a command, holds its GPUs, and leaves nothing of it behind.

It ends what the command started, also in sessions of its own, when the command has ended, when whoever started the keeper
has, or on SIGTERM. Its GPUs are free only after that.
"""
from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil

from flows import gpu
from thousandwords.errors import UserError

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
ALONE = 3.0  # seconds after which a SIGTERM is passed on: one for the whole group has reached everybody before


def kept(command: Sequence[str], gpus: int, what: str) -> list[str]:
    """The command line that runs a command by this module."""
    return [sys.executable, "-m", "flows.keeper", "--gpus", str(gpus), "--what", what, "--", *command]


def keep(command: list[str], gpus: int, what: str) -> int:
    """Runs the command; returns its code, 128 + N where a signal N ended it. Raises UserError where it may not start."""
    starter = _starter()
    _adopt_orphans()
    with gpu.held(gpus, what) as holding, _wakeups() as woken:
        process = subprocess.Popen(command, env={**os.environ, **holding.environment()})
        try:
            _wait(process, starter, woken)
        finally:
            gpu.end_all(_descendants(process))
    code = process.returncode
    return 128 - code if code < 0 else code


def _starter() -> int:
    """A handle of the parent, which tells when it ends."""
    parent = os.getppid()
    try:
        handle = os.pidfd_open(parent)
    except OSError as error:
        raise UserError("what started this process is gone already, so this process ends, too") from error
    if os.getppid() != parent:
        raise UserError("what started this process is gone already, so this process ends, too")
    return handle


def _adopt_orphans() -> None:
    """A process whose parent ends becomes this one's child, not init's: so none gets out of sight."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def _wakeups():
    """A pipe that can be read once SIGTERM has come. Ctrl-C is for the command, which hears it, too."""
    reading, writing = os.pipe()

    def on_term(*_: object) -> None:
        os.write(writing, b"!")

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, on_term)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _wait(process: subprocess.Popen, starter: int, woken: int) -> None:
    """Until the command has ended, or should."""
    ended = os.pidfd_open(process.pid)
    ready, _, _ = select.select([ended, starter, woken], [], [])
    if woken in ready:  # a cancelled flow signals the whole group: a second signal would cut a checkpoint short
        select.select([ended], [], [], ALONE)
    os.close(ended)


def _descendants(process: subprocess.Popen):
    """A function that gives what still runs below this process, and takes the dead away."""

    def find() -> list[psutil.Process]:
        process.poll()
        found = []
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if one.status() == psutil.STATUS_ZOMBIE and one.ppid() == os.getpid() and one.pid != process.pid:
                    os.waitpid(one.pid, os.WNOHANG)
                else:
                    found.append(one)
        return found

    return find


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=0, help="how many GPUs to hold (default: none)")
    parser.add_argument("--what", default="", help="what to call it where others wait for the GPU")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(argv)
    try:
        code = keep(options.command, options.gpus, options.what or options.command[0])
    except UserError as error:
        print(f"keeper: {error}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


if __name__ == "__main__":
    main()
