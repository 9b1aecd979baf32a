"""Many processes, one training: which rows of a batch each takes, and how their gradients are combined.

Each process takes an equal part of the same global batches in the same order. DDP: each has the whole model,
and gradients are averaged, optionally compressed by torch's PowerSGD (arXiv 2102.12092, section 2.4 and
appendix E). FSDP2: each has a part of every weight, for models that do not fit.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from thousandwords.core.errors import UserError
from thousandwords.training.config import check_divides


@dataclass(frozen=True)
class World:
    """The processes of one training, and which of them this is."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"  # of the values that processes exchange

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """The mean of the values of all processes."""
        return float(self._reduced(torch.tensor(value, dtype=torch.float64), dist.ReduceOp.SUM)) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self._reduced(torch.tensor(float(flag)), dist.ReduceOp.MAX))

    def all(self, flags: Tensor) -> Tensor:
        """Which flags (n,) are set in all processes: (n,) bool."""
        return self._reduced(flags.float(), dist.ReduceOp.MIN).bool()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every process, all of one shape, in the order of ranks."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows (n, …) of all processes, concatenated: (size * n, …); gradients reach the own rows.

        For a loss over all rows, the same on every process: gradients are averaged later as if each came from
        a part of the loss, so a row's own gradient counts `size` times.
        """
        if self.size == 1:
            return rows
        parts = self.gather(rows.detach())
        parts[self.rank] = rows.detach() + self.size * (rows - rows.detach())
        return torch.cat(parts)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def micro_batches(self, positions: range, accumulation: int = 1) -> list[range]:
        """This process's micro-batches: micro_batches(range(8), 2) -> [range(4, 6), range(6, 8)] at rank 1 of 2.

        Raises UserError where the rows do not divide evenly.
        """
        try:
            check_divides(len(positions), self.size, accumulation)
        except ValueError as error:
            raise UserError(str(error)) from error
        length = len(positions) // (self.size * accumulation)
        first = self.rank * accumulation
        return [positions[number * length :][:length] for number in range(first, first + accumulation)]

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.size > 1:
            tensor = tensor.to(self.device)
            dist.all_reduce(tensor, operation)
        return tensor.cpu()


SINGLE_PROCESS = World()


def is_started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def init_processes(device: str) -> Iterator[World]:
    """The connected processes of torchrun; without it this process only. `device` is cpu or cuda."""
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


class ForwardWrapper(nn.Module):
    """A model whose forward pass is any function of it, for the hooks of DDP and FSDP."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable, *arguments: Any) -> Any:
        return function(self.model, *arguments)


class SingleProcess:
    """One process, nothing to exchange; also the contract of the two strategies below."""

    def __init__(self, model: nn.Module) -> None:
        self.wrapper = ForwardWrapper(model)

    def step(self, function: Callable, *arguments: Any, is_last: bool = True) -> Any:
        """Call a function that returns a loss; the last micro-batch's backward pass exchanges gradients."""
        return self.wrapper(function, *arguments)

    def evaluate(self, function: Callable, *arguments: Any) -> Any:
        """Call a function without gradients, the same on every process."""
        return self.wrapper(function, *arguments)

    def tensors(self) -> dict[str, Tensor]:
        """The state of the exchange itself, for a checkpoint. A collective call: all processes take part."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore `tensors`, also those of another number of processes."""

    def reset_feedback(self) -> None:
        """Clear what was kept of gradients, after gradients that were not finite."""


class DDP(SingleProcess):
    """Every process has the whole model; gradients are averaged, with `rank` compressed by PowerSGD."""

    def __init__(self, model: nn.Module, world: World, rank: int | None) -> None:
        super().__init__(model)
        self.world = world
        # else DDP makes new buckets after the first update, and PowerSGD's state, which is per bucket, is lost
        has_frozen_steps = any(getattr(module, "has_frozen_steps", False) for module in model.modules())
        find_unused = rank is not None or has_frozen_steps
        self.replica = DistributedDataParallel(self.wrapper, find_unused_parameters=find_unused)
        self.compression = None
        if rank is not None:
            settings = {"matrix_approximation_rank": rank, "start_powerSGD_iter": 2}
            self.compression = powerSGD_hook.PowerSGDState(None, **settings)
            self.replica.register_comm_hook(self.compression, compress)

    def step(self, function: Callable, *arguments: Any, is_last: bool = True) -> Any:
        with contextlib.nullcontext() if is_last else self.replica.no_sync():
            return self.replica(function, *arguments)

    def tensors(self) -> dict[str, Tensor]:
        """PowerSGD's state: the error feedback of every process, and the shared low-rank factors."""
        state = self.compression
        if state is None:
            return {}
        tensors = {"updates": torch.tensor(state.iter)}
        for bucket, error in state.error_dict.items():
            tensors[f"{bucket}.errors"] = torch.stack(self.world.gather(error))
            tensors[f"{bucket}.p"] = state.p_memory_dict[bucket]
            tensors[f"{bucket}.q"] = state.q_memory_dict[bucket]
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """With another number of processes each takes the mean error: the next average stays the same."""
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

    def reset_feedback(self) -> None:
        state = self.compression
        if state is not None:
            for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
                memory.clear()


def compress(state: powerSGD_hook.PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """torch's PowerSGD, awaited: over gloo its later exchanges start in threads, in any order."""
    future = powerSGD_hook.powerSGD_hook(state, bucket)
    future.wait()
    return future


class FSDP(SingleProcess):
    """FSDP2: every process has a part of each weight, gradient and moment, and gathers block by block."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        from torch.distributed.fsdp import fully_shard  # late: a fifth of what a stage's start takes

        super().__init__(model)
        for block in blocks:
            fully_shard(block)
        fully_shard(self.wrapper)

    def step(self, function: Callable, *arguments: Any, is_last: bool = True) -> Any:
        self.wrapper.set_requires_gradient_sync(is_last)
        return self.wrapper(function, *arguments)


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor as a whole; any other unchanged. A collective call, in the same order everywhere."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def copy_like(value: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor with the device, memory layout and shards of `like`."""
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like).copy_(value)
