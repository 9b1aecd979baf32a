"""python -m flows.workers.supervisor --gpus 1 -- COMMAND: runs a command and holds its GPUs.

It ends everything that the command started, also in other sessions, when the command has ended, when the
supervisor's own parent has ended, when the terminal is closed, or on SIGTERM. The GPUs are free only after that.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil

from flows.command_line import one_sentence, parser
from flows.workers import gpu_lock
from thousandwords.core.errors import UserError
from thousandwords.core.processes import STOP_SIGNALS, end_with, on_signals

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
# seconds until a SIGTERM is passed on: one sent to the group has reached every process by then, and a second
# would cut a checkpoint short
FORWARD_AFTER = 3.0


def supervised(command: Sequence[str], gpus: int, what: str) -> list[str]:
    """The command line that runs a command under this module, as a child of this process."""
    options = [f"--parent={os.getpid()}", f"--gpus={gpus}", f"--what={what}"]
    return [sys.executable, "-m", "flows.workers.supervisor", *options, "--", *command]


def supervise(command: list[str], gpus: int, what: str, parent: int) -> int:
    """Run the command; its exit code, 128 + N if signal N ended it. Raises UserError if it may not start."""
    end_with(parent)
    if os.getppid() != parent:
        raise UserError("the parent of this process has ended already, so this process ends, too")
    # this process, not init, becomes the parent of a descendant whose parent ends, so that none is lost
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with gpu_lock.hold(gpus, what) as environment:
        stop, stopped = os.pipe()
        with (
            on_signals(lambda _: os.write(stopped, b"!"), *STOP_SIGNALS),
            on_signals(lambda _: None, signal.SIGINT),  # Ctrl-C reaches the command by itself
        ):
            process = subprocess.Popen(command, env={**os.environ, **environment})
            try:
                ended = os.pidfd_open(process.pid)
                if stop in select.select([ended, stop], [], [])[0]:
                    select.select([ended], [], [], FORWARD_AFTER)
            finally:
                gpu_lock.end_all(lambda: _descendants(process))
    code = process.returncode
    return 128 - code if code < 0 else code


def _descendants(process: subprocess.Popen) -> list[psutil.Process]:
    """The live processes below this one; the dead ones are reaped."""
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


def main(argv: list[str] | None = None) -> None:
    arguments, parent = parser(__doc__), os.getppid()
    arguments.add_argument("--gpus", type=int, default=0, help="how many GPUs to hold (default: none)")
    arguments.add_argument("--what", default="a run", help="what others see while they wait for the GPU")
    arguments.add_argument("--parent", type=int, default=parent, help="end with it (default: the parent)")
    arguments.add_argument("command", nargs="+", metavar="COMMAND")
    options = arguments.parse_args(argv)
    with one_sentence("supervisor", code=2):
        raise SystemExit(supervise(options.command, options.gpus, options.what, options.parent))


if __name__ == "__main__":
    main()
