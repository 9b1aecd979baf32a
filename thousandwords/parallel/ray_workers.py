"""The engine on a Ray cluster: one actor per worker, on any machine with free capacity. The only module that
imports Ray.

Workers receive this project's code from here. They read models and data themselves, in the project's folder,
which every machine has under the same path (a shared folder, or a clone with `dvc checkout`). Only results
are sent back. Left out: Ray's own restarts and retries, because the pool that lost a worker reports it and
starts another; and Ray Data, whose file names are random.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import exceptions
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from thousandwords.core.errors import UserError
from thousandwords.parallel.pool import NoCapacity, Worker, WorkerDied
from thousandwords.parallel.ray_address import check_address, no_cluster
from thousandwords.parallel.worker import Opener, Outcome, outcome_of

ROOT = Path(__file__).parents[2]
PLACE_SECONDS = 120.0  # a cluster may take this long to find capacity for a worker
START_SECONDS = 300.0  # and then this long to start its process, on machines with much other work


@contextlib.contextmanager
def cluster_workers(
    open_worker: Opener, address: str, device: str, threads: int, num_workers: Callable[[float, float], int]
) -> Iterator[tuple[Callable[[int], Worker], int]]:
    """(function that starts a worker, `num_workers` of the cluster's cores and GPUs)"""
    code = [str(ROOT / name) for name in ("thousandwords", "stages")]
    check_address(address)
    try:
        ray.init(address, runtime_env={"py_modules": code}, log_to_driver=False, logging_level="warning")
    except OSError as error:
        raise no_cluster(address) from error
    try:
        capacity = ray.cluster_resources()
        arguments = (open_worker, device, threads, str(Path.cwd()), machine(device))
        resources = {"GPU": 1, "CPU": 1} if device == "cuda" else {"CPU": threads}
        count = num_workers(capacity.get("CPU", 0), capacity.get("GPU", 0))
        yield lambda _: RayWorker(arguments, resources), count
    finally:
        ray.shutdown()


class RayWorker:
    """An actor on some machine of the cluster, in a place that is reserved first: so a cluster without capacity
    differs from one that only starts processes slowly."""

    def __init__(self, arguments: tuple, resources: dict[str, int]) -> None:
        self.arguments, self.resources = arguments, resources
        self.place = placement_group([resources])
        options = {f"num_{name.lower()}s": count for name, count in resources.items()}
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self.place)
        self.actor = ray.remote(TaskRunner).options(**options).remote()

    def open(self) -> Outcome:
        if not self.place.wait(PLACE_SECONDS):
            available = ray.available_resources()
            free = {name: value for name, value in available.items() if name in ("CPU", "GPU")}
            raise NoCapacity(
                f"the Ray cluster found no place for a worker, which needs {_describe(self.resources)}, in "
                f"{PLACE_SECONDS:g} seconds; free: {_describe(free) or 'nothing'}. "
                "Lower engine.workers, or add machines"
            )
        try:
            self._get(self.actor.__ray_ready__.remote(), START_SECONDS)
        except exceptions.GetTimeoutError as error:
            raise WorkerDied(f"it did not start in {START_SECONDS:g} seconds") from error
        return self._get(self.actor.open.remote(*self.arguments))

    def run(self, items: Sequence) -> Iterator[Outcome]:
        return (self._get(self.actor.run.remote(item)) for item in items)

    def end(self) -> None:
        ray.kill(self.actor)
        remove_placement_group(self.place)

    def _get(self, reference: ray.ObjectRef, timeout: float | None = None) -> Any:
        try:
            return ray.get(reference, timeout=timeout)
        except (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.OutOfMemoryError) as error:
            raise WorkerDied(str(error).strip().splitlines()[0]) from error


# ---- on a machine of the cluster


class TaskRunner:
    """Runs the work in the project's folder; the machine must give the same bytes as `reference`."""

    def open(self, *arguments: object) -> Outcome:
        return self._with_host(outcome_of(self._open, *arguments))

    def run(self, item: object) -> Outcome:
        return self._with_host(outcome_of(self.work, item))

    def _open(
        self, open_worker: Opener, device: str, threads: int, folder: str, reference: dict[str, str]
    ) -> None:
        torch.set_num_threads(threads)
        if not Path(folder).is_dir():
            raise UserError(
                f"there is no folder {folder}. "
                "Every machine of a cluster needs this project under the same path"
            )
        os.chdir(folder)
        if (here := machine(device)) != reference:
            raise UserError(
                f"found {_describe(here)}, but the machine that started this has {_describe(reference)}: "
                "the bytes would not be the same. Use machines of one kind, with one environment"
            )
        self.work = open_worker(device)

    def _with_host(self, outcome: Outcome) -> Outcome:
        """Add the name of this machine to an error of the user."""
        if isinstance(outcome.error, UserError):
            return Outcome(error=type(outcome.error)(f"on {socket.gethostname()}: {outcome.error}"))
        return outcome


def machine(device: str) -> dict[str, str]:
    """What determines the last bits of a sum, besides the code and the number of threads."""
    chip = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "arithmetic": chip}


def _describe(values: dict) -> str:
    """{"CPU": 1} -> "CPU 1"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
