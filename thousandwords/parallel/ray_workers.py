"""The engine over a Ray cluster: one actor per worker, on whichever machine has room. The only module that imports Ray.

The workers get this project's code from here; models and data they read themselves, in the project's folder, which every machine
has under the same path (a shared folder, or a clone with `dvc checkout`). Only results come back. Left out: Ray's own restarts
and retries, since the desk that lost a worker tells of it and hires another; and Ray Data, whose files have names of chance.
"""
from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from stages._engine import Died, Engine, NoPlace, places
from stages._hand import FarHand, Opener, Outcome, machine, told
from thousandwords.errors import UserError

ROOT = Path(__file__).parent.parent
SECONDS_TO_ANSWER = 10.0
PLACE_SECONDS = 120.0  # a cluster may take that long to find room for a worker


class Cluster:
    """A connection to a cluster that is there already."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __enter__(self) -> Cluster:
        code = [str(ROOT / name) for name in ("thousandwords", "stages")]
        address = self.engine.config.address
        try:
            _check_answers(address)
            ray.init(address, runtime_env={"py_modules": code}, log_to_driver=False, logging_level="warning")
        except OSError as error:
            raise UserError(
                f"no Ray cluster answers at engine.address {address!r}. Start one here: ray start --head, and join it from the "
                "other machines: ray start --address HOST:6379; or set engine.kind: local"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def count(self) -> int:
        """How many workers: as many as wanted, or as the cluster has room for."""
        wanted, has = self.engine.config.workers, ray.cluster_resources()
        if wanted != "auto":
            return wanted
        return places(self.engine.device, self.engine.threads, has.get("CPU", 0), has.get("GPU", 0))

    def needs(self) -> dict[str, int]:
        """What one worker takes of a machine."""
        return {"num_gpus": 1, "num_cpus": 1} if self.engine.device_kind == "cuda" else {"num_cpus": self.engine.threads}

    def hire(self, open_worker: Opener, _: int) -> RayWorker:
        device = self.engine.device_kind
        order = (open_worker, device, self.engine.threads, str(Path.cwd()), machine(device))
        return RayWorker(order, self.needs())


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself would try again for minutes."""
    host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()


class RayWorker:
    """An actor somewhere in the cluster."""

    def __init__(self, order: tuple, needs: dict[str, int]) -> None:
        self.order, self.needs = order, needs
        self.actor = ray.remote(FarHand).options(**needs, scheduling_strategy="SPREAD").remote()

    def start(self) -> Outcome:
        self._wait_for_place()
        return self._get(self.actor.open.remote(*self.order))

    def do(self, unit: object) -> Outcome:
        return self._get(self.actor.do.remote(unit))

    def end(self) -> None:
        ray.kill(self.actor)

    def _wait_for_place(self) -> None:
        try:
            self._get(self.actor.__ray_ready__.remote(), PLACE_SECONDS)
        except exceptions.GetTimeoutError as error:
            free = {name: value for name, value in ray.available_resources().items() if name in ("CPU", "GPU")}
            raise NoPlace(
                f"the Ray cluster found no place for a worker, which needs {told(self.needs)}, in {PLACE_SECONDS:g} seconds; "
                f"free: {told(free) or 'nothing'}. Lower engine.workers, or add machines"
            ) from error

    def _get(self, reference: ray.ObjectRef, timeout: float | None = None) -> Any:
        try:
            return ray.get(reference, timeout=timeout)
        except (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.OutOfMemoryError) as error:
            raise Died(str(error).strip().splitlines()[0]) from error
