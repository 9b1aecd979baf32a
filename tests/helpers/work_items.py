"""What tests give the engine to do: openers that a worker process can import by name."""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from thousandwords.files import DamagedArtefact


def squares(device: str) -> Callable[[int], int]:
    """The first units take longest, so that they would come last if order were left to chance."""

    def square(number: int) -> int:
        time.sleep(max(0.0, 0.2 - 0.1 * number))
        return number * number

    return square


def places(device: str) -> Callable[[object], tuple[int, int, str]]:
    """Who works: (process, threads, device)."""
    import torch

    return lambda _: (os.getpid(), torch.get_num_threads(), device)


def nodes(device: str) -> Callable[[float], str]:
    """On which node of a Ray cluster; each unit is so many seconds of work."""
    import ray

    def node(seconds: float) -> str:
        time.sleep(seconds)
        return ray.get_runtime_context().get_node_id()

    return node


def damaged(device: str) -> Callable[[int], int]:
    def refuse(number: int) -> int:
        if number == 2:
            raise DamagedArtefact(f"shard {number} is damaged. Run: dvc checkout")
        return number

    return refuse


def unopened(device: str) -> Callable:
    raise DamagedArtefact("models/image_tokenizer is damaged. Run: dvc checkout")


def mistaken(device: str) -> Callable[[int], float]:
    return lambda number: 1 / number


class Deadly:
    """Unit 1 kills its process until it has done so `times` times; told by files, for a dead process tells nothing."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times = folder, times

    def __call__(self, device: str) -> Callable[[int], int]:
        def work(number: int) -> int:
            deaths = len(list(self.folder.iterdir()))
            if number == 1 and deaths < self.times:
                (self.folder / str(deaths)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        return work


def sleepers(folder: Path, device: str) -> Callable[[int], None]:
    """Workers that leave their process id in a folder and sleep."""

    def sleep(number: int) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(0.0 if number == 0 else 100.0)

    return sleep
