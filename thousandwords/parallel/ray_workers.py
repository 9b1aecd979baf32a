"""The engine on a Ray cluster: one actor per worker, on any machine with free capacity. The only module that
imports Ray.

Workers receive this project's code from here. They read models and data themselves, in the project's folder,
which every machine has under the same path (a shared folder, or a clone with `dvc checkout`). Only results
are sent back. Left out: Ray's own restarts and retries, because the slot that lost a worker reports it and
starts another; and Ray Data, whose file names are random.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from thousandwords.core.errors import UserError
from thousandwords.parallel.base import Engine, NoCapacity, WorkerDied, auto_num_workers
from thousandwords.parallel.worker import Opener, Outcome, RemoteTaskRunner, describe, machine

ROOT = Path(__file__).parents[2]
CONNECT_SECONDS = 10.0
START_SECONDS = 120.0  # a cluster may take this long to find capacity for a worker


class Cluster:
    """A connection to a running cluster."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __enter__(self) -> Cluster:
        code = [str(ROOT / name) for name in ("thousandwords", "stages")]
        address = self.engine.config.address
        try:
            _check_connection(address)
            ray.init(address, runtime_env={"py_modules": code}, log_to_driver=False, logging_level="warning")
        except OSError as error:
            raise UserError(
                f"no Ray cluster answers at engine.address {address!r}. Start one here: ray start --head, and join it from the "
                "other machines: ray start --address HOST:6379; or set engine.kind: local"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def num_workers(self) -> int:
        """The number in the settings, or as many as the cluster has capacity for."""
        workers, resources = self.engine.config.workers, ray.cluster_resources()
        if workers != "auto":
            return workers
        return auto_num_workers(
            self.engine.device, self.engine.threads, resources.get("CPU", 0), resources.get("GPU", 0)
        )

    def resources_per_worker(self) -> dict[str, int]:
        if self.engine.device_kind == "cuda":
            return {"num_gpus": 1, "num_cpus": 1}
        return {"num_cpus": self.engine.threads}

    def start_worker(self, open_worker: Opener, _: int) -> RayWorker:
        device = self.engine.device_kind
        arguments = (open_worker, device, self.engine.threads, str(Path.cwd()), machine(device))
        return RayWorker(arguments, self.resources_per_worker())


def _check_connection(address: str) -> None:
    """Raise OSError if nothing listens at the address; Ray itself would retry for minutes."""
    host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


class RayWorker:
    """An actor on some machine of the cluster."""

    def __init__(self, arguments: tuple, resources: dict[str, int]) -> None:
        self.arguments, self.resources = arguments, resources
        self.actor = ray.remote(RemoteTaskRunner).options(**resources, scheduling_strategy="SPREAD").remote()

    def open(self) -> Outcome:
        self._wait_for_start()
        return self._get(self.actor.open.remote(*self.arguments))

    def run(self, item: object) -> Outcome:
        return self._get(self.actor.run.remote(item))

    def end(self) -> None:
        ray.kill(self.actor)

    def _wait_for_start(self) -> None:
        try:
            self._get(self.actor.__ray_ready__.remote(), START_SECONDS)
        except exceptions.GetTimeoutError as error:
            available = ray.available_resources()
            free = {name: value for name, value in available.items() if name in ("CPU", "GPU")}
            raise NoCapacity(
                f"the Ray cluster found no place for a worker, which needs {describe(self.resources)}, in {START_SECONDS:g} "
                f"seconds; free: {describe(free) or 'nothing'}. Lower engine.workers, or add machines"
            ) from error

    def _get(self, reference: ray.ObjectRef, timeout: float | None = None) -> Any:
        try:
            return ray.get(reference, timeout=timeout)
        except (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.OutOfMemoryError) as error:
            raise WorkerDied(str(error).strip().splitlines()[0]) from error
