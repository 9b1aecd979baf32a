"""What works on units, in a process of this machine or far away: opened once, asked unit by unit, every answer an outcome.

It imports nothing heavy: whatever the work needs comes with the work.
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

from thousandwords.errors import UserError

Opener = Callable[[str], Callable[[Any], Any]]  # device -> the work on one unit


@dataclass(frozen=True)
class Done:
    value: Any


@dataclass(frozen=True)
class Failed:
    """An error of the user's or of the system's."""

    error: UserError | OSError


@dataclass(frozen=True)
class Bug:
    """The traceback of a mistake of ours; an exception itself may not survive the way."""

    trace: str


Outcome = Done | Failed | Bug


def outcome_of(function: Callable, argument: object) -> Outcome:
    try:
        return Done(function(argument))
    except (UserError, OSError) as error:
        return Failed(error)
    except Exception:
        return Bug(traceback.format_exc())


class Hand:
    """Opened once, then asked unit by unit."""

    def open(self, open_worker: Opener, device: str) -> Outcome:
        outcome = outcome_of(open_worker, device)
        if isinstance(outcome, Done):
            self.work, outcome = outcome.value, Done(None)
        return outcome

    def do(self, unit: object) -> Outcome:
        return outcome_of(self.work, unit)


# ---- a process of this machine


def serve(descriptor: int, parent: int) -> None:
    """What a process does: takes an order, then units, until nobody asks any more or whoever started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    _end_with(parent)
    hand = Hand()
    with contextlib.suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        connection.send(hand.open(*connection.recv()))
        while True:
            connection.send(hand.do(connection.recv()))


def _end_with(parent: int) -> None:
    """Ends this process at once when its parent has ended, also in the middle of a unit: nobody would take the result."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(ProcessLookupError):
            threading.Thread(target=_end_after, args=(os.pidfd_open(parent),), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _end_after(handle: int) -> None:
    select.select([handle], [], [])
    os._exit(1)


# ---- a machine of a cluster


class FarHand(Hand):
    """A hand on some machine of a cluster: it works in the project's folder, and on a machine like the first."""

    def open(self, open_worker: Opener, device: str, threads: int, folder: str, like: dict[str, str]) -> Outcome:
        import torch

        torch.set_num_threads(threads)
        outcome = outcome_of(partial(_check_place, folder, like), device)
        return self._placed(super().open(open_worker, device) if isinstance(outcome, Done) else outcome)

    def do(self, unit: object) -> Outcome:
        return self._placed(super().do(unit))

    def _placed(self, outcome: Outcome) -> Outcome:
        """An error of the user's says on which machine it was met."""
        if isinstance(outcome, Failed) and isinstance(outcome.error, UserError):
            return Failed(type(outcome.error)(f"on {socket.gethostname()}: {outcome.error}"))
        return outcome


def machine(device: str) -> dict[str, str]:
    """What the last bits of a sum hang on, beside the code and the threads."""
    import torch

    chip = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "arithmetic": chip}


def _check_place(folder: str, like: dict[str, str], device: str) -> None:
    """Raises UserError unless the project is here, under the same path, and this machine computes as the first does."""
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}. Every machine of a cluster needs this project under the same path")
    os.chdir(folder)
    if (found := machine(device)) != like:
        raise UserError(
            f"found {told(found)}, but the machine that started this has {told(like)}: the bytes would not be the same. "
            "Use machines of one kind, with one environment"
        )


def told(facts: dict) -> str:
    """{"num_cpus": 1} -> "num_cpus 1"."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())
