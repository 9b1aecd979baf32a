"""The section `training` of every stage that trains, and the functions a training is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Log = Callable[[int, dict[str, float]], None]  # step, values
# model, batch, step, random generator -> loss, values to log
StepLoss = Callable[[nn.Module, Any, int, torch.Generator], tuple[Tensor, dict[str, Any]]]


@dataclass(frozen=True)
class TrainingConfig:
    """The section `training` of every stage that trains. All lengths are in updates."""

    steps: int
    batch_size: int
    learning_rate: float  # the peak
    final_learning_rate: float = 0.0  # where the cosine ends
    warmup_steps: int = 0
    # after the warm-up: a cosine, or halved when the validation loss stops falling
    schedule: Literal["cosine", "plateau"] = "cosine"
    decay_steps: int | None = None  # updates until the cosine ends, warm-up included; null: all
    patience: int = 5  # evaluations without a gain after which "plateau" halves the rate
    weight_decay: float = 0.0  # on matrices and kernels only
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    # the model's muon_parameters by Muon at this many times the rate; null: all by AdamW (paper)
    muon_lr_scale: float | None = None
    second_moment_clip: float | None = None  # limit of AdamW's running variance, by value; null: none
    clip_norm: float | None = None  # limit of the norm of the whole gradient; null: none
    ema_decay: float | None = None  # null: no average, the last weights are kept
    ema_warmup: bool = False  # lower decay at the start, for short runs
    ema_every: int = 1  # updates
    # of matrix products (autocast; weights stay float32); auto: bfloat16 on a GPU, float32 on a CPU
    precision: Literal["auto", "float32", "bfloat16", "bfloat16_if_supported", "float16"] = "auto"
    num_processes: int | Literal["auto"] = 1  # on this machine, by torchrun; auto: one per GPU, two on a CPU
    strategy: Literal["ddp", "fsdp"] = "ddp"  # each process has the whole model, or a part of every weight
    powersgd_rank: int | None = None  # of gradients compressed by PowerSGD, with ddp; null: uncompressed
    gradient_accumulation: int = 1  # micro-batches per process and update
    loader_workers: int | Literal["auto"] = "auto"  # threads that load batches; auto: 2 on a GPU, 0 on a CPU
    log_every: int = 25
    evaluate_every: int = 200
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        zero_or_more = {"final_learning_rate", "warmup_steps", "weight_decay", "loader_workers"}
        above_zero = {"learning_rate", "epsilon", "clip_norm", "muon_lr_scale", "second_moment_clip"}
        for name, value in vars(self).items():
            if value is None or isinstance(value, str | bool):
                continue
            if name in zero_or_more:
                is_valid, range_name = value >= 0, "0 or more"
            elif name in above_zero:
                is_valid, range_name = value > 0, "above 0"
            elif name in ("beta1", "beta2", "ema_decay"):
                is_valid, range_name = 0 <= value < 1, "in [0, 1)"
            else:
                is_valid, range_name = value >= 1, "1 or more"
            if not is_valid:
                raise ValueError(f"training.{name} is {value}; it needs to be {range_name}")
        if self.strategy == "fsdp" and self.powersgd_rank is not None:
            raise ValueError(
                "training.powersgd_rank has no effect with training.strategy fsdp; set it to null, or use ddp"
            )
        if self.strategy == "fsdp" and self.muon_lr_scale is not None:
            raise ValueError(
                "training.muon_lr_scale needs whole matrices; set it to null, or use training.strategy ddp"
            )
        if isinstance(self.num_processes, int):
            check_divides(self.batch_size, self.num_processes, self.gradient_accumulation)

    def num_loader_workers(self, device: str) -> int:
        """How many threads load batches: none on a CPU, where they would compete with training."""
        if self.loader_workers == "auto":
            return 2 if device.startswith("cuda") else 0
        return self.loader_workers


def check_divides(batch_size: int, processes: int, accumulation: int) -> None:
    """Raise ValueError unless a batch divides evenly into micro-batches."""
    if batch_size % (processes * accumulation):
        raise ValueError(
            f"training.batch_size is {batch_size}, which {processes} processes with {accumulation} micro-batches "
            f"each cannot share evenly; make it a multiple of {processes * accumulation}"
        )
