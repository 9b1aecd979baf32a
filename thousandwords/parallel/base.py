"""The section `engine` of params.yaml, and the contract of a worker."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.parallel.worker import Bug, Failed, Outcome

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
        return self.config.kind == "local" and self.num_workers(2) == 1

    def num_workers(self, num_items: int) -> int:
        """How many workers on this machine are useful for so many items."""
        workers = self.config.workers
        if workers == "auto":
            cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
            workers = auto_num_workers(self.device, self.threads, cores, gpus)
        return min(workers, num_items)

    @property
    def device_kind(self) -> str:
        return self.device.partition(":")[0]


def auto_num_workers(device: str, threads: int, cores: float, gpus: float) -> int:
    """One worker per GPU, or per `threads` cores, and at least one: auto_num_workers("cpu", 2, 8, 0) -> 4."""
    return max(1, int(cores) // threads if device.startswith("cpu") else int(gpus))


def engine_from_params(params: dict, device: str) -> Engine:
    return Engine(read_engine_config(params), device, torch.get_num_threads())


class WorkerDied(Exception):
    """A worker ended during its work."""


class NoCapacity(UserError):
    """There is no free capacity for a worker."""


class Worker(Protocol):
    """A process or actor that does the work. Its constructor is fast, so it can be ended while it starts."""

    def open(self) -> object: ...

    def run(self, item: object) -> object: ...

    def end(self) -> None: ...


def unwrap(outcome: Outcome) -> Any:
    """The value of an outcome; raises the error of a failed one."""
    if isinstance(outcome, Failed):
        raise outcome.error
    if isinstance(outcome, Bug):
        raise RuntimeError(f"a worker failed:\n{outcome.trace}")
    return outcome.value
