"""The side of a worker: opened once, then called item by item; every answer is an outcome. It imports
nothing heavy itself: the work brings its own imports.
"""

import contextlib
import ctypes
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from thousandwords.core.errors import UserError

Opener = Callable[[str], Callable[[Any], Any]]  # device -> the function to call with each item
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class Outcome:
    """What an item gave: a value or an error."""

    value: Any = None
    error: Exception | None = None

    def unwrap(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def outcome_of(function: Callable, *arguments: object) -> Outcome:
    try:
        return Outcome(function(*arguments))
    except (UserError, OSError) as error:
        return Outcome(error=error)
    except Exception:  # as text: the exception itself might not be picklable
        return Outcome(error=RuntimeError(f"a worker failed:\n{traceback.format_exc()}"))


def serve(descriptor: int, parent: int) -> None:
    """Main loop of a worker process: receive the opener, then batches, and answer item by item."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    _end_with(parent)
    with contextlib.suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        open_worker, device = connection.recv()
        opened = outcome_of(open_worker, device)
        connection.send(Outcome(error=opened.error))
        while True:
            for item in connection.recv():
                connection.send(outcome_of(opened.value, item))


def _end_with(parent: int) -> None:
    """End this process with the thread that started it, even in the middle of an item (on Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
