"""Many processes, one training: who takes which rows of a batch, and how their gradients meet.

`torchrun` starts the processes; each takes an even share of the same global batches in the same order, so that a run on eight
GPUs sees what a run on one would. Two ways: DDP, where each process holds the whole model and gradients are averaged, on wish
compressed by torch's PowerSGD (arXiv 2102.12092, section 2.4 and appendix E); and FSDP2, where each holds a share of every
weight, for what does not fit. Left out: tensor and pipeline parallelism.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from thousandwords.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of one training, and which of them this is."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"  # where values that are exchanged have to lie

    @property
    def is_first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """The mean of every process's value."""
        return float(self._reduced(torch.tensor(value, dtype=torch.float64), dist.ReduceOp.SUM)) / self.size

    def any(self, flag: bool) -> bool:
        """Whether some process says yes."""
        return bool(self._reduced(torch.tensor(float(flag)), dist.ReduceOp.MAX))

    def all(self, flags: Tensor) -> Tensor:
        """Which flags (n,) every process has set: (n,) bool."""
        return self._reduced(flags.float(), dist.ReduceOp.MIN).bool()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor of that shape, in the order of ranks."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Every process's rows (n, …), one after the other: (size * n, …); gradients reach this process's own.

        For a loss of all rows, the same on every process. Their gradients are averaged afterwards, as if each were of a
        share of the loss, so that a row's own counts as often as there are processes.
        """
        if self.size == 1:
            return rows
        parts = self.gather(rows.detach())
        parts[self.rank] = rows.detach() + self.size * (rows - rows.detach())
        return torch.cat(parts)

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def shares(self, positions: range, accumulation: int = 1) -> list[range]:
        """This process's micro-batches: rank 1 of 2, shares(range(8), 2) -> [range(4, 6), range(6, 8)].

        Raises UserError where the rows do not divide evenly.
        """
        parts = self.size * accumulation
        check_divides(len(positions), self.size, accumulation)
        length = len(positions) // parts
        first = positions.start + self.rank * accumulation * length
        return [range(first + number * length, first + (number + 1) * length) for number in range(accumulation)]

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.size > 1:
            tensor = tensor.to(self.device)
            dist.all_reduce(tensor, operation)
        return tensor.cpu()


ALONE = World()


def check_divides(batch_size: int, processes: int, accumulation: int) -> None:
    """Raises UserError unless a batch can be dealt out evenly."""
    if batch_size % (processes * accumulation):
        raise UserError(
            f"training.batch_size is {batch_size}, which {processes} processes with {accumulation} micro-batches each cannot "
            f"share evenly. Make it a multiple of {processes * accumulation}"
        )


def is_started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes that torchrun has started, this one among them; or this one alone. `device` is cpu or cuda."""
    if not is_started_by_torchrun():
        yield World(device=device)
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device == "cuda":
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


class Whole(nn.Module):
    """A model whose forward pass is any work with it, so that the hooks of DDP and FSDP see the whole of that work."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable, *arguments: Any) -> Any:
        return work(self.model, *arguments)


class Alone:
    """One process: nothing to exchange. The contract that the two below keep."""

    def __init__(self, model: nn.Module) -> None:
        self.whole = Whole(model)

    def step(self, work: Callable, *arguments: Any, is_last: bool = True) -> Any:
        """Work that ends in a loss; gradients meet in the backward pass of an update's last micro-batch."""
        return self.whole(work, *arguments)

    def look(self, work: Callable, *arguments: Any) -> Any:
        """Work without gradients, the same on every process."""
        return self.whole(work, *arguments)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep of the exchange itself. Every process has to ask."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes up `tensors`, also those of another number of processes."""

    def forget(self) -> None:
        """After gradients that were not finite: what was kept of them must not live on."""


class Replicas(Alone):
    """DDP: every process holds the whole model; gradients are averaged, at some `rank` compressed by PowerSGD."""

    def __init__(self, model: nn.Module, world: World, rank: int | None) -> None:
        super().__init__(model)
        self.world = world
        # Left to itself DDP deals parameters into other buckets after the first update; what PowerSGD keeps is kept per
        # bucket, and a resumed run would not find its own. Looking for unused parameters makes the buckets stay.
        looks_for_unused = rank is not None or getattr(model, "rests", False)
        self.replica = DistributedDataParallel(self.whole, find_unused_parameters=looks_for_unused)
        self.compression = None
        if rank is not None:
            self.compression = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
            self.replica.register_comm_hook(self.compression, compressed)

    def step(self, work: Callable, *arguments: Any, is_last: bool = True) -> Any:
        with contextlib.nullcontext() if is_last else self.replica.no_sync():
            return self.replica(work, *arguments)

    def tensors(self) -> dict[str, Tensor]:
        """PowerSGD's memory: the error feedback of every process, and the low-rank factors, which all share."""
        state = self.compression
        if state is None:
            return {}
        kept = {"updates": torch.tensor(state.iter)}
        for bucket, error in state.error_dict.items():
            kept[f"{bucket}.errors"] = torch.stack(self.world.gather(error))
            kept[f"{bucket}.p"], kept[f"{bucket}.q"] = state.p_memory_dict[bucket], state.q_memory_dict[bucket]
        return kept

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """At another number of processes each takes the mean error, so that what is sent next stays the same on average."""
        if self.compression is None:
            return
        memory = {"errors": self.compression.error_dict, "p": self.compression.p_memory_dict}
        memory["q"] = self.compression.q_memory_dict
        for name, value in tensors.items():
            if name == "updates":
                self.compression.iter = int(value)
                continue
            bucket, kind = name.split(".")
            if kind == "errors":
                value = value[self.world.rank] if len(value) == self.world.size else value.mean(dim=0)
            memory[kind][int(bucket)] = value.to(self.world.device).clone()

    def forget(self) -> None:
        if self.compression is not None:
            for memory in (self.compression.error_dict, self.compression.p_memory_dict, self.compression.q_memory_dict):
                memory.clear()


def compressed(state: powerSGD_hook.PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's PowerSGD, awaited: over gloo its later exchanges start in other threads, in any order on each process."""
    future = powerSGD_hook.powerSGD_hook(state, bucket)
    future.wait()
    return future


# DDP reads the annotations of a hook as classes, not as the text that they are in this file
compressed.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}


class Shards(Alone):
    """FSDP2: every process holds a share of each weight, its gradient and its moments, and sees a whole block at a time."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(model)
        for block in blocks:
            fully_shard(block)
        fully_shard(self.whole)

    def step(self, work: Callable, *arguments: Any, is_last: bool = True) -> Any:
        self.whole.set_requires_gradient_sync(is_last)
        return self.whole(work, *arguments)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor; any other as it is. Every process has to ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def alike(value: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, kept as `like` is: its device, its layout in memory, its shards."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like).copy_(value)
