"""fit(): batch -> loss -> step -> log -> evaluate -> save. It knows no model by name.

All that a step depends on is a function of (seed, step): the batch, the noise, the learning rate. So a run that was killed
and goes on from a checkpoint is bit for bit the run that was never stopped (on the same machine and thread count).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thousandwords import optim
from thousandwords.checkpoints import Checkpoint, Checkpoints, optimizer_tensors, restore_optimizer
from thousandwords.errors import UserError

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
    weight_decay: float = 0.0  # on matrices and kernels only
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    muon_factor: float | None = None  # hidden matrices by Muon at this many times the rate; null: all by AdamW (paper)
    clip_norm: float | None = None  # of the whole gradient; null: never clipped
    ema_decay: float | None = None  # null: the last weights are the model
    ema_warmup: bool = False  # lower decay at the start, for short runs
    precision: Literal["float32", "bfloat16", "auto"] = "float32"  # of matrix products (autocast); weights stay float32
    log_every: int = 25
    evaluate_every: int = 200
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be 1 or more")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be 0 or more")
        for name in ("learning_rate", "epsilon", "clip_norm", "muon_factor"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be above 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it needs to be in [0, 1)")


class NotFinite(ArithmeticError):
    """The loss or the gradient is NaN or infinite. Raised before the update: the weights are those of the step before."""


class Stopped(Exception):
    """Someone asked the training to stop; a checkpoint of this very step has been written."""


@dataclass
class History:
    """The curves of a run: one row per logged step. It travels in the checkpoint, so a resumed curve has no gap."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})


def is_bfloat16(precision: str, device: str) -> bool:
    """Whether matrix products run in bfloat16; "auto" says yes where the processor has units for it, and it pays."""
    if precision == "auto":
        if device == "cuda":
            return torch.cuda.is_bf16_supported()
        units = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.11 has it not
        return bool(units.get("avx512_bf16") or units.get("amx_bf16"))
    return precision == "bfloat16"


def step_rng(seed: int, step: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The random generator of one step: a function of (seed, step), so there is no state to lose.

    It has to be on the device of the tensors that it fills: torch takes no other.
    """
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) % 2**63)


def fit(
    model: nn.Module,
    config: Config,
    *,
    batch_of: Callable[[int], Any],
    loss_of: StepLoss,
    seed: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log = lambda step, values: None,
    progress: Callable[[int, str], None] = lambda step, note: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Tensor], History]:
    """Trains `model` for `config.steps` updates; returns (the averaged weights, the curves).

    `batch_of(step)` gives a batch, `loss_of(model, batch, step, rng)` its loss and what to log. With `checkpoints` the run goes
    on from the newest one. `model` ends with the last weights; the returned state is their moving average, if one was asked for.
    Raises NotFinite before a bad update, and Stopped after a checkpoint when `is_stopped()` says so.
    """
    run = _Run(model, config)
    start = run.restore(checkpoints.newest()) if checkpoints else 0
    for step in range(start, config.steps):
        values = run.update(batch_of(step), step, loss_of, step_rng(seed, step, run.device))
        done = step + 1
        is_last = done == config.steps
        progress(done, f"loss {values['loss']:.4f}")
        if evaluate and (done % config.evaluate_every == 0 or is_last):
            values |= {f"validation/{name}": value for name, value in run.evaluated(evaluate).items()}
        if done % config.log_every == 0 or is_last or any(name.startswith("validation/") for name in values):
            run.history.add(done, values)
            log(done, values)
        is_wanted = is_stopped()
        if checkpoints and (done % config.checkpoint_every == 0 or is_wanted or is_last):
            checkpoints.save(done, run.tensors(), {"history": run.history.rows})
        if is_wanted and not is_last:
            raise Stopped(f"stopped after step {done}")
    return run.averaged(), run.history


def _optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the model's `hidden_matrices` and AdamW for the rest."""
    matrices = []
    if config.muon_factor is not None:
        matrices = model.hidden_matrices() if hasattr(model, "hidden_matrices") else []
        if not matrices:
            raise UserError("training.muon_factor is set, but this model names no hidden matrices. Set it to null")
    rest = optim.adamw(model, config.weight_decay, config.beta1, config.beta2, config.epsilon, matrices)
    return [rest] + ([optim.muon(matrices, config.weight_decay, config.muon_factor)] if matrices else [])


class _Run:
    """The moving parts of one training: model, optimizer, average, curves."""

    def __init__(self, model: nn.Module, config: Config) -> None:
        self.model, self.config, self.history = model.train(), config, History()
        self.device = next(model.parameters()).device
        self.optimizers = _optimizers(model, config)
        self.average = None
        if config.ema_decay is not None:
            self.average = optim.MovingAverage(model, config.ema_decay, config.ema_warmup)

    def update(self, batch: Any, step: int, loss_of: StepLoss, rng: torch.Generator) -> dict[str, float]:
        """One step; returns what to log. Nothing is changed if the loss or the gradient is not finite."""
        config = self.config
        rate = optim.learning_rate(
            step, config.learning_rate, config.final_learning_rate, config.warmup_steps, config.steps
        )
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        is_rounded = is_bfloat16(config.precision, self.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_rounded):
            loss, logged = loss_of(self.model, batch, step, rng)
        loss.backward()
        norm = optim.clip_gradients(self.model.parameters(), config.clip_norm)
        values = {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise NotFinite(
                f"step {step}: the loss is {values['loss']} and the gradient norm {values['gradient_norm']}; "
                "the weights were left as they were. Lower training.learning_rate, or set training.clip_norm"
            )
        for optimizer in self.optimizers:
            optim.set_learning_rate(optimizer, rate)
            optimizer.step()
        if self.average:
            self.average.update(self.model)
        return values | {name: float(value) for name, value in logged.items()}

    def averaged(self) -> dict[str, Tensor]:
        """The weights to keep."""
        state = self.average.state if self.average else self.model.state_dict()
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def evaluated(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """`evaluate` of the averaged weights, put into the model for that long."""
        current = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged())
        values = evaluate(self.model.eval())
        self.model.load_state_dict(current)
        self.model.train()
        return {name: float(value) for name, value in values.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, flat."""
        parts = {"model": self.model.state_dict()}
        parts |= {f"optimizer{number}": optimizer_tensors(one) for number, one in enumerate(self.optimizers)}
        if self.average:
            parts["average"] = self.average.state
            parts["updates"] = {"average": torch.tensor(self.average.updates)}
        return {f"{part}/{name}": value for part, state in parts.items() for name, value in state.items()}

    def restore(self, checkpoint: Checkpoint | None) -> int:
        """Takes up a checkpoint, if there is one; returns the step to go on with."""
        if checkpoint is None:
            return 0
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in checkpoint.tensors.items():
            part, rest = name.split("/", 1)
            parts.setdefault(part, {})[rest] = value
        self.model.load_state_dict(parts["model"])
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, parts[f"optimizer{number}"])
        if self.average:
            self.average.state = parts["average"]
            self.average.updates = int(parts["updates"]["average"])
        self.history = History(checkpoint.state["history"])
        return checkpoint.step
