"""Work for the engine's tests: openers that a worker process can import by name."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from thousandwords.core.manifest import DamagedArtefact


def environments(device: str) -> Callable[[object], tuple[int, int, str]]:
    """Where the work runs: (process id, threads, device)."""
    import torch

    return lambda _: (os.getpid(), torch.get_num_threads(), device)


def nodes(device: str) -> Callable[[float], str]:
    """The id of the Ray node; each item is the number of seconds to work."""
    import ray

    def node(seconds: float) -> str:
        time.sleep(seconds)
        return ray.get_runtime_context().get_node_id()

    return node


class WaitsForLoss:
    """Items 0 to 2 wait until three nodes have one of them; the others until `folder`/lost names another node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, device: str) -> Callable[[int], str]:
        import ray

        node, lost = ray.get_runtime_context().get_node_id(), self.folder / "lost"

        def is_waiting(number: int) -> bool:
            if number < 3:
                return len(list(self.folder.glob("node-*"))) < 3
            return not lost.exists() or lost.read_text() == node

        def work(number: int) -> str:
            if number < 3:
                (self.folder / f"node-{node}").touch()
            while is_waiting(number):
                time.sleep(0.05)
            return node

        return work


def damaged_item(device: str) -> Callable[[int], int]:
    """Item 2 raises an error."""

    def check(number: int) -> int:
        if number == 2:
            raise DamagedArtefact(f"shard {number} is damaged. Run: dvc checkout")
        return number

    return check


def damaged_model(device: str) -> Callable:
    """Opening raises an error."""
    raise DamagedArtefact("models/image_tokenizer is damaged. Run: dvc checkout")


class KillsWorker:
    """Item 1 kills its process the first `times` times, counted by files: a dead process reports nothing."""

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
