"""python -m flows.workers.supervisor --gpus 1 -- COMMAND: runs a command and holds its GPUs.

It ends everything that the command started, also in other sessions, when the command has ended, when the
supervisor's own parent has ended, or on SIGTERM. The GPUs are free only after that.
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
from collections.abc import Callable, Sequence

import psutil

from flows.workers import gpu_lock
from thousandwords.core.errors import UserError

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
FORWARD_AFTER = (
    3.0  # seconds until a SIGTERM is passed on: one sent to the group has reached every process by then
)


def supervised(command: Sequence[str], gpus: int, what: str) -> list[str]:
    """The command line that runs a command under this module."""
    options = ["--gpus", str(gpus), "--what", what]
    return [sys.executable, "-m", "flows.workers.supervisor", *options, "--", *command]


def supervise(command: list[str], gpus: int, what: str) -> int:
    """Run the command; its exit code, 128 + N if signal N ended it. Raises UserError if it may not start."""
    parent = _open_parent()
    _adopt_orphans()
    with gpu_lock.hold(gpus, what) as holding, _sigterm_pipe() as sigterm:
        process = subprocess.Popen(command, env={**os.environ, **holding.environment()})
        try:
            _wait(process, parent, sigterm)
        finally:
            gpu_lock.end_all(_descendants(process))
    code = process.returncode
    return 128 - code if code < 0 else code


def _open_parent() -> int:
    """A handle of the parent process, readable once it has ended."""
    parent = os.getppid()
    try:
        handle = os.pidfd_open(parent)
    except OSError as error:
        raise UserError("the parent of this process has ended already, so this process ends, too") from error
    if os.getppid() != parent:
        raise UserError("the parent of this process has ended already, so this process ends, too")
    return handle


def _adopt_orphans() -> None:
    """Make this process, not init, the parent of a descendant whose parent ends, so that none is lost."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def _sigterm_pipe():
    """A pipe that is readable once SIGTERM has come.

    Ctrl-C reaches the command by itself, so it is ignored here.
    """
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


def _wait(process: subprocess.Popen, parent: int, sigterm: int) -> None:
    """Return when the command has ended, or has to end."""
    ended = os.pidfd_open(process.pid)
    ready, _, _ = select.select([ended, parent, sigterm], [], [])
    if (
        sigterm in ready
    ):  # a cancelled flow signals its whole group: a second signal would cut a checkpoint short
        select.select([ended], [], [], FORWARD_AFTER)
    os.close(ended)


def _descendants(process: subprocess.Popen) -> Callable[[], list[psutil.Process]]:
    """A function that lists the live processes below this one and reaps the dead ones."""

    def find() -> list[psutil.Process]:
        process.poll()
        alive = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                is_zombie = child.status() == psutil.STATUS_ZOMBIE
                if is_zombie and child.ppid() == os.getpid() and child.pid != process.pid:
                    os.waitpid(child.pid, os.WNOHANG)
                else:
                    alive.append(child)
        return alive

    return find


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=0, help="how many GPUs to hold (default: none)")
    parser.add_argument("--what", default="", help="the name that others see while they wait for the GPU")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(argv)
    try:
        code = supervise(options.command, options.gpus, options.what or options.command[0])
    except UserError as error:
        print(f"supervisor: {error}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


if __name__ == "__main__":
    main()
