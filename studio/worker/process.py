"""The worker process holds the models and handles the requests one by one: the web server touches no tensor.

It is a process, not a thread: a signal can interrupt it in the middle of an image, it can run out of memory
without ending the server, and it never holds the server's interpreter lock. Over one pipe it receives
(number, name, arguments) of a request and sends its events, at last None.
"""

import contextlib
import ctypes
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact

STOP_SIGNAL = signal.SIGUSR1
GPU_FAILED = 70  # exit code: the process cannot use its GPU any more

Event = dict[str, Any]  # becomes one JSON object
Grid = list[list[int]]  # rows of tokens


class Stopped(BaseException):
    """The client of this request has gone. Not an Exception, so that no handler on the way catches it."""


class FieldError(UserError):
    """The value of one field of a request is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class StudioPaths:
    """Folders that the studio uses, and the device of its models."""

    pairs: Path = Path("data/pairs")
    gallery: Path = Path("generated/gallery")
    store: Path = Path(".store/studio")
    device: str = "cpu"


class CurrentRequest:
    """Takes the next event of a request; the stop signal raises Stopped there and nowhere else."""

    def __init__(self, stop_number: ctypes.c_ulonglong) -> None:
        self.stop_number, self.number = stop_number, 0

    def next_event(self, number: int, events: Iterator[Event]) -> Event | None:
        """The next event, None at the end. Raises Stopped if the request is to be stopped."""
        try:
            self.number = number
            self.check_stop()
            return next(events, None)
        finally:
            self.number = 0

    def check_stop(self, *_: object) -> None:
        """Raise Stopped if the current request is the one to stop; also the handler of the signal."""
        if self.number and self.stop_number.value == self.number:
            self.number = 0
            raise Stopped


def run_worker(
    pipe: Connection, stop_number: ctypes.c_ulonglong, paths: StudioPaths, make_worker: Callable
) -> None:
    """Handle the requests of a pipe until it is closed. The stop signal is for request `stop_number`.

    `make_worker(paths)` makes a `studio.worker.models.ModelWorker`, or what a test has in its place.
    """
    current = CurrentRequest(stop_number)
    signal.signal(STOP_SIGNAL, current.check_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        worker = make_worker(paths)
        while True:
            while not pipe.poll(0):
                if not worker.index_some():
                    pipe.poll(None)
            _handle(worker, pipe, current, *pipe.recv())


def _handle(worker: Any, pipe: Connection, current: CurrentRequest, number: int, name: str, arguments: dict):
    """Send the events of one request, whatever ends it."""
    try:
        events = worker.events(name, **arguments)
        while (event := current.next_event(number, events)) is not None:
            pipe.send(event)
    except Stopped:
        pass
    except DamagedArtefact as error:  # or another process is writing it
        pipe.send(unavailable(str(error)))
    except UserError as error:
        field = getattr(error, "field", None)
        pipe.send({"event": "error", "error": str(error), "field": field, "status": 422})
    except (BrokenPipeError, ConnectionResetError):  # the server has died
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            worker.free_memory()
            fix = "Request fewer candidates, or try again later"
            pipe.send(unavailable(f"the GPU has not enough free memory. {fix}"))
        else:
            traceback.print_exc()
            pipe.send(unavailable("the request failed; the studio's log has the reason. Try again"))
            if "CUDA" in str(error):  # after such an error CUDA does not work in this process any more
                sys.exit(GPU_FAILED)
    pipe.send(None)


def unavailable(message: str) -> Event:
    """The last event of a request that may succeed at another time (status 503)."""
    return {"event": "error", "error": message, "field": None, "status": 503}
