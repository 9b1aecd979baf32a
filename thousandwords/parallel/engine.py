"""Work items over processes or machines: the same results in the same order, for any number of workers.

    for item, result in run_items(open_worker, items, engine_from_params(params, device), "tokenize_pairs"): ...

`open_worker(device)` loads what the work needs, once per worker, and returns the function to call with each
item. The section `engine` of params.yaml sets how the work is distributed. Only the stage `check_params`
depends on it: it changes no byte, so DVC reruns nothing. So a worker uses as many threads as a single process
would, because the number of threads changes how sums round.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.progress import progress
from thousandwords.parallel.pool import LocalWorker, Pool, Worker, WorkerDied, thread_variables
from thousandwords.parallel.worker import Opener

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ATTEMPTS = 3  # for an item whose worker dies
ITEMS_AHEAD = 2  # items per worker that are in progress or wait to be yielded; their results are in memory
FIX_RAY = "Run on every machine: make ray, or set engine.kind: local"


@dataclass(frozen=True)
class EngineConfig:
    """The optional section `engine` of params.yaml; without it everything runs in one process."""

    kind: Literal["local", "ray"] = "local"
    workers: int | Literal["auto"] = 1  # auto: one per GPU, or as many as the cores allow
    address: str = "auto"  # of the Ray cluster, HOST:PORT; auto: RAY_ADDRESS, or the one running here

    def __post_init__(self) -> None:
        if self.workers != "auto" and self.workers < 1:
            raise ValueError(f"engine.workers is {self.workers}; it needs to be 1 or more, or auto")
        if self.kind == "local" and self.address != "auto":
            raise ValueError(
                f"engine.address is {self.address!r}, but engine.kind is local. Set engine.kind: ray"
            )


def read_engine_config(params: dict) -> EngineConfig:
    """The section `engine`, or the default; raises ConfigError, also if Ray is set but not installed."""
    config = section(params["engine"], "engine", EngineConfig) if "engine" in params else EngineConfig()
    if config.kind == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError(f"params.yaml: engine.kind is ray, but Ray is not installed. {FIX_RAY}")
    return config


@dataclass(frozen=True)
class Engine:
    """Where the work runs: the settings, and the device and threads of each worker."""

    config: EngineConfig
    device: str  # cpu, cuda, or one GPU of several
    threads: int

    @property
    def is_single_process(self) -> bool:
        """Whether this process does all the work."""
        return self.config.kind == "local" and self.num_local_workers == 1

    @property
    def num_local_workers(self) -> int:
        return self.num_workers(os.cpu_count() or 1, torch.cuda.device_count())

    @property
    def device_kind(self) -> str:
        return self.device.partition(":")[0]

    def num_workers(self, cores: float, gpus: float) -> int:
        """The number in the settings; auto: one per GPU, or per `threads` cores, and at least one."""
        if self.config.workers != "auto":
            return self.config.workers
        return max(1, int(cores) // self.threads if self.device_kind == "cpu" else int(gpus))


def engine_from_params(params: dict, device: str) -> Engine:
    return Engine(read_engine_config(params), device, torch.get_num_threads())


def run_items(
    open_worker: Opener, items: Sequence[Item], engine: Engine, label: str
) -> Iterator[tuple[Item, Result]]:
    """(item, result) in the order of `items`; no worker outlives the iterator.

    Raises the UserError or OSError of the work, RuntimeError with the traceback of any other exception, and
    UserError if an item has ended `MAX_ATTEMPTS` workers.
    """
    if not items:
        return
    if engine.is_single_process:
        work = open_worker(engine.device)
        yield from ((item, work(item)) for item in items)
        return

    def on_death(item: Item, error: WorkerDied, attempt: int) -> None:
        attempts = f"attempt {attempt} of {MAX_ATTEMPTS}"
        print(f"{label}: a worker died at {item} ({error}), {attempts}", file=sys.stderr, flush=True)
        if attempt == MAX_ATTEMPTS:
            raise UserError(
                f"{item} has ended {MAX_ATTEMPTS} workers, which is often a lack of memory. "
                "Lower engine.workers, or the section's batch_size"
            )

    if engine.config.kind == "ray":
        from thousandwords.parallel.ray_workers import cluster_workers  # it imports Ray, an optional extra

        place = (engine.config.address, engine.device_kind, engine.threads)
        workers = cluster_workers(open_worker, *place, engine.num_workers)
    else:
        threads = thread_variables(engine.threads)

        def start_local(number: int) -> Worker:
            variables = threads | _gpu_variable(engine, number)
            return LocalWorker(open_worker, engine.device_kind, variables)

        workers = contextlib.nullcontext((start_local, engine.num_local_workers))
    with (
        workers as (start_worker, max_workers),
        Pool(start_worker, min(max_workers, len(items)), on_death, label) as pool,
    ):
        results = pool.results(([item] for item in items), ITEMS_AHEAD)
        yield from progress(results, label, len(items), "item")


def _gpu_variable(engine: Engine, number: int) -> dict[str, str]:
    """Worker `number` sees one of the GPUs that this process sees."""
    if engine.device_kind != "cuda":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": names[number % len(names)]}
