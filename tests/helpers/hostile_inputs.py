"""What pictures can do to the process that decodes them, as functions that a worker process can import."""
from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from thousandwords import pairs
from thousandwords.sources import RawPair

kept: list[np.ndarray] = []


def square(number: int) -> int:
    time.sleep(0.002 * (number % 5))    # answers of several workers come out of order
    return number * number


def process(_: object) -> int:
    return os.getpid()


def obey(word: str) -> str:
    """Does what the word says; any other word comes back in capitals."""
    if word.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[word])
    if word.startswith("exit "):
        os._exit(int(word.removeprefix("exit ")))
    if word == "hang":
        time.sleep(60)
    while word == "burn":
        pass
    if word == "fail":
        raise KeyError("a mistake of ours")
    if word.startswith("take "):
        return str(len(np.ones(int(word.removeprefix("take ")), np.uint8)))
    if word.startswith("keep "):
        kept.append(np.ones(int(word.removeprefix("keep ")), np.uint8))
        return str(len(kept[-1]))
    return word.upper()


def die_once(marker: Path) -> str:
    """Dies where nobody has died before it."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lives"


def note_and_die(notes: Path) -> None:
    with open(notes, "a") as file:
        file.write(f"{os.getpid()}\n")
    os._exit(1)


def prepare(raw: RawPair, config: pairs.Config) -> pairs.Pair | pairs.Refusal:
    """`pairs.prepare` with a decoder that does what the bytes after OBEY say."""
    if raw.image and raw.image.startswith(b"OBEY "):
        obey(raw.image[5:].decode())
    return pairs.prepare(raw, config)
