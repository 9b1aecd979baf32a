"""fit(): batch -> loss -> step -> log -> evaluate -> save. It knows no model by name.

All that a step depends on is a function of (seed, step): the batch, the noise, the learning rate. So a run that was killed
and goes on from a checkpoint is bit for bit the run that was never stopped (on the same machine and thread count).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thousandwords.checkpoints import Checkpoints
from thousandwords.distributed import ALONE, World
from thousandwords.errors import UserError
from thousandwords.updates import Run

Log = Callable[[int, dict[str, float]], None]
StepLoss = Callable[[nn.Module, Any, int, torch.Generator], tuple[Tensor, dict[str, Any]]]


@dataclass(frozen=True)
class Config:
    """The section `training` of every stage that trains. All lengths are in updates."""

    steps: int
    batch_size: int
    learning_rate: float  # the peak
    final_learning_rate: float = 0.0  # where the cosine ends
    warmup_steps: int = 0
    schedule: Literal["cosine", "plateau"] = "cosine"  # after the warm-up: a cosine, or halved when the validation loss stays
    decay_steps: int | None = None  # updates until the cosine has ended, the warm-up among them; null: all of them
    patience: int = 5  # evaluations without a gain after which "plateau" halves the rate
    least_gain: float = 0.0  # in nats; less counts as none
    weight_decay: float = 0.0  # on matrices and kernels only
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    muon_factor: float | None = None  # hidden matrices by Muon at this many times the rate; null: all by AdamW (paper)
    variance_limit: float | None = None  # AdamW's running variance, clipped by value; null: never
    clip_norm: float | None = None  # of the whole gradient; null: never clipped
    ema_decay: float | None = None  # null: the last weights are the model
    ema_warmup: bool = False  # lower decay at the start, for short runs
    ema_every: int = 1  # updates
    # of matrix products (autocast; weights stay float32); auto: bfloat16 on a GPU, float32 on a CPU
    precision: Literal["auto", "float32", "bfloat16", "bfloat16_if_supported", "float16"] = "auto"
    processes: int | Literal["auto"] = 1  # on this machine, by torchrun; auto: one per GPU, two on a CPU
    parallel: Literal["ddp", "fsdp"] = "ddp"  # each process holds the whole model, or a share of every weight
    powersgd_rank: int | None = None  # of compressed gradients, with ddp; null: sent whole
    accumulation: int = 1  # micro-batches that a process takes its share of a batch in
    loader_workers: int | Literal["auto"] = "auto"  # threads that make the next batches; auto: 2 beside a GPU, 0 on a CPU
    log_every: int = 25
    evaluate_every: int = 200
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every", "patience", "ema_every")
        for name in (*counts, "accumulation", "decay_steps", "powersgd_rank", "processes"):
            if isinstance(getattr(self, name), int) and getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be 1 or more")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "least_gain", "loader_workers"):
            if getattr(self, name) != "auto" and not getattr(self, name) >= 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be 0 or more")
        for name in ("learning_rate", "epsilon", "clip_norm", "muon_factor", "variance_limit"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be above 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be in [0, 1)")
        self._check_parallel()

    def workers_on(self, device: str) -> int:
        """How many threads make batches where a process computes on `device`: on a CPU they would take its time."""
        if self.loader_workers == "auto":
            return 2 if device.startswith("cuda") else 0
        return self.loader_workers

    def _check_parallel(self) -> None:
        if self.parallel == "fsdp" and self.powersgd_rank is not None:
            raise ValueError("training.powersgd_rank has no use with training.parallel fsdp; set it to null, or take ddp")
        if self.parallel == "fsdp" and self.muon_factor is not None:
            raise ValueError("training.muon_factor needs whole matrices; set it to null, or take training.parallel ddp")
        if isinstance(self.processes, int) and self.batch_size % (self.processes * self.accumulation):
            raise ValueError(
                f"training.batch_size is {self.batch_size}, which {self.processes} processes with {self.accumulation} "
                f"micro-batches each cannot share evenly; make it a multiple of {self.processes * self.accumulation}"
            )


class Stopped(Exception):
    """Someone asked the training to stop; a checkpoint of this very step has been written."""


@dataclass
class History:
    """The curves of a run: one row per logged step. It travels in the checkpoint, so a resumed curve has no gap."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})


def check_model(model: nn.Module, config: Config) -> None:
    """Raises UserError where a setting asks for what this model does not offer."""
    if config.muon_factor is not None and not (hasattr(model, "hidden_matrices") and model.hidden_matrices()):
        raise UserError("training.muon_factor is set, but this model names no hidden matrices. Set it to null")
    if getattr(model, "needs_whole_batches", False) and config.accumulation != 1:
        raise UserError(
            "training.accumulation takes a batch in parts, one after the other, but this model's loss compares all pairs of a "
            "batch. Set it to 1"
        )
    if config.precision == "float16" and not hasattr(model, "residual_paths"):
        raise UserError(
            "training.precision is float16, but this model names no residual paths whose gradients could be scaled. "
            "Set it to bfloat16 or float32"
        )


def fit(
    model: nn.Module,
    config: Config,
    *,
    batches_of: Callable[[int], Sequence[Any]],
    loss_of: StepLoss,
    seed: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log = lambda step, values: None,
    progress: Callable[[int, str], None] = lambda step, note: None,
    is_stopped: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> tuple[dict[str, Tensor], History]:
    """Trains `model` for `config.steps` updates; returns (the averaged weights, the curves).

    `batches_of(step)` gives this process's micro-batches (one, as a rule; `World.shares` says which rows), and
    `loss_of(model, batch, step, rng)` a batch's loss and what to log. With `checkpoints` the run goes on from the newest one.
    `model` ends with the last weights; the returned state is their moving average, if one was asked for. All processes of
    `world` return the same; the first alone writes checkpoints. Raises NotFinite before a bad update, and Stopped after a
    checkpoint when `is_stopped()` says so, on whichever process.
    """
    check_model(model, config)
    run, history = Run(model, config, world), History()
    found = checkpoints.newest() if checkpoints else None
    start = run.restore(found)
    history = History(found.state["history"]) if found else history
    for step in range(start, config.steps):
        values = run.update(batches_of(step), step, loss_of, seed)
        done = step + 1
        is_last = done == config.steps
        progress(done, f"loss {values['loss']:.4f}")
        if evaluate and (done % config.evaluate_every == 0 or is_last):
            values |= {f"validation/{name}": value for name, value in run.evaluated(evaluate).items()}
            _check_plateau(config, values)
        if done % config.log_every == 0 or is_last or any(name.startswith("validation/") for name in values):
            history.add(done, values)
            log(done, values)
        is_wanted = world.any(is_stopped())
        if checkpoints and (done % config.checkpoint_every == 0 or is_wanted or is_last):
            _save(checkpoints, done, run, history, world)
        if is_wanted and not is_last:
            raise Stopped(f"stopped after step {done}")
    return run.averaged(), history


def _save(checkpoints: Checkpoints, step: int, run: Run, history: History, world: World) -> None:
    tensors = run.tensors()  # every process has its part in it
    if world.is_first:
        checkpoints.save(step, tensors, {"history": history.rows})
    world.wait()


def _check_plateau(config: Config, values: dict[str, float]) -> None:
    if config.schedule == "plateau" and "validation/loss" not in values:
        raise UserError("training.schedule is plateau, but this model's evaluation gives no loss to look at. Set it to cosine")
