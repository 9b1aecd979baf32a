"""Decoders that crash, hang or use too much memory, as functions that a worker process can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers start without them in a tenth of the time
    from thousandwords.ingest.config import DataConfig
    from thousandwords.ingest.records import Pair, Rejection
    from thousandwords.ingest.sources.base import RawPair

held: list[bytearray] = []


def square(number: int) -> int:
    time.sleep(0.002 * (number % 5))  # answers of several workers come out of order
    return number * number


def process(_: object) -> int:
    return os.getpid()


def obey(word: str) -> str:
    """Execute the command in `word`; any other word is returned in upper case."""
    if word.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[word])
    if word.startswith("exit "):
        os._exit(int(word.removeprefix("exit ")))
    if word == "hang":
        time.sleep(60)
    while word == "burn":
        pass
    if word == "fail":
        raise KeyError("a programming error")
    if word.startswith("take "):
        return str(len(bytearray(int(word.removeprefix("take ")))))
    if word.startswith("keep "):
        held.append(bytearray(int(word.removeprefix("keep "))))
        return str(len(held[-1]))
    return word.upper()


def die_once(marker: Path) -> str:
    """Die the first time, live after that."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lives"


def note_and_die(notes: Path) -> None:
    with open(notes, "a") as file:
        file.write(f"{os.getpid()}\n")
    os._exit(1)


def prepare_obediently(raw_pair: RawPair, config: DataConfig, seed: int) -> Pair | Rejection:
    """`prepare_pair` with a decoder that executes the command after OBEY."""
    from thousandwords.ingest.prepare import prepare_pair

    if raw_pair.image and raw_pair.image.startswith(b"OBEY "):
        obey(raw_pair.image[5:].decode())
    return prepare_pair(raw_pair, config, seed)
