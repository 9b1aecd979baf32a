"""How a process ends: with another one, and on the signals of a shell, a service manager or a closed terminal."""

import contextlib
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed


def end_with(*pids: int, grace: float | None = None, whole_group: bool = False) -> None:
    """When one of the processes ends, send SIGTERM to this one, or to its group; SIGKILL after `grace` seconds.

    By a handle of the process, since its number may be reused, and the kernel's own signal for this comes when
    the thread ends that started this process. Linux only.
    """
    if not pids or not hasattr(os, "pidfd_open"):
        return
    try:
        handles = [os.pidfd_open(pid) for pid in pids]
    except ProcessLookupError:  # it has just ended
        handles = []
    except OSError:  # a kernel without such handles
        return

    def watch() -> None:
        # a signal that this thread takes does not wake the main one, which alone runs handlers
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if handles:
            select.select(handles, [], [])
        _signal(signal.SIGTERM, whole_group)
        if grace is not None:
            time.sleep(grace)
            _signal(signal.SIGKILL, whole_group)

    threading.Thread(target=watch, daemon=True).start()


def _signal(number: int, whole_group: bool) -> None:
    os.killpg(os.getpgrp(), number) if whole_group else os.kill(os.getpid(), number)


@contextlib.contextmanager
def on_signals(handler: Callable[[int], None], *numbers: int) -> Iterator[None]:
    """Call `handler(number)` on these signals meanwhile; not on SIGHUP if it is ignored, as under `nohup`."""

    def on_signal(number: int, _: object) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        handler(number)

    before = {
        number: signal.signal(number, on_signal)
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def leave_terminal() -> None:
    """Send what this process still prints to nowhere: every write to a closed terminal is an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
