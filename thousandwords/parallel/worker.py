"""The side of a worker, in a process of this machine or on a cluster: opened once, then called item by item;
every answer is an outcome. It imports nothing heavy itself: the work brings its own imports.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from thousandwords.core.errors import UserError

Opener = Callable[[str], Callable[[Any], Any]]  # device -> the function to call with each item


@dataclass(frozen=True)
class Done:
    value: Any


@dataclass(frozen=True)
class Failed:
    """An error of the user or of the system."""

    error: UserError | OSError


@dataclass(frozen=True)
class Bug:
    """The traceback of any other exception; the exception itself might not be picklable."""

    trace: str


Outcome = Done | Failed | Bug


def outcome_of(function: Callable, argument: object) -> Outcome:
    try:
        return Done(function(argument))
    except (UserError, OSError) as error:
        return Failed(error)
    except Exception:
        return Bug(traceback.format_exc())


class TaskRunner:
    """Runs the work: opened once, then called item by item."""

    def open(self, open_worker: Opener, device: str) -> Outcome:
        outcome = outcome_of(open_worker, device)
        if isinstance(outcome, Done):
            self.work, outcome = outcome.value, Done(None)
        return outcome

    def run(self, item: object) -> Outcome:
        return outcome_of(self.work, item)


# ---- a process of this machine


def serve(descriptor: int, parent: int) -> None:
    """Main loop of a worker process: receive the opener, then items, until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    _end_with(parent)
    runner = TaskRunner()
    with contextlib.suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        connection.send(runner.open(*connection.recv()))
        while True:
            connection.send(runner.run(connection.recv()))


def _end_with(parent: int) -> None:
    """End this process as soon as its parent ends, even in the middle of an item."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(ProcessLookupError):
            threading.Thread(target=_end_after, args=(os.pidfd_open(parent),), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _end_after(handle: int) -> None:
    select.select([handle], [], [])
    os._exit(1)


# ---- a machine of a cluster


class RemoteTaskRunner(TaskRunner):
    """A TaskRunner on another machine, in the project's folder; the machine must give the same bytes."""

    def open(
        self, open_worker: Opener, device: str, threads: int, folder: str, reference: dict[str, str]
    ) -> Outcome:
        import torch

        torch.set_num_threads(threads)
        outcome = outcome_of(partial(_enter_project, folder, reference), device)
        return self._with_host(super().open(open_worker, device) if isinstance(outcome, Done) else outcome)

    def run(self, item: object) -> Outcome:
        return self._with_host(super().run(item))

    def _with_host(self, outcome: Outcome) -> Outcome:
        """Add the name of this machine to an error of the user."""
        if isinstance(outcome, Failed) and isinstance(outcome.error, UserError):
            return Failed(type(outcome.error)(f"on {socket.gethostname()}: {outcome.error}"))
        return outcome


def machine(device: str) -> dict[str, str]:
    """What determines the last bits of a sum, besides the code and the number of threads."""
    import torch

    chip = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "arithmetic": chip}


def _enter_project(folder: str, reference: dict[str, str], device: str) -> None:
    """Change to the project's folder; UserError if it is missing or this machine differs from `reference`."""
    if not Path(folder).is_dir():
        raise UserError(
            f"there is no folder {folder}. Every machine of a cluster needs this project under the same path"
        )
    os.chdir(folder)
    if (here := machine(device)) != reference:
        raise UserError(
            f"found {describe(here)}, but the machine that started this has {describe(reference)}: "
            "the bytes would not be the same. Use machines of one kind, with one environment"
        )


def describe(values: dict) -> str:
    """{"num_cpus": 1} -> "num_cpus 1"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
