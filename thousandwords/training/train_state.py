"""The moving parts of one training, and how an update moves them: optimizers, precision, average, processes.

`training.fit` asks for one update after the other; what an update needs to be the same after a restart is in `tensors`.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thousandwords import distributed, optim, schedules
from thousandwords.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from thousandwords.distributed import World
from thousandwords.memory import keep_freed_memory
from thousandwords.scaling import GradientScales
from thousandwords.seeds import step_rng

if TYPE_CHECKING:
    from thousandwords.training import Config, StepLoss


class NotFinite(ArithmeticError):
    """The loss or the gradient is NaN or infinite. Raised before the update: the weights are those of the step before."""


def autocast_type(precision: str, device: str) -> torch.dtype | None:
    """What matrix products run in, or None for float32.

    "auto" is bfloat16 on a GPU that has it; "bfloat16_if_supported" also on a CPU with units for it (attention gains by that,
    convolutions with few channels lose).
    """
    if precision == "auto":
        return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else None
    if precision == "bfloat16_if_supported":
        return torch.bfloat16 if _has_bfloat16_units(device) else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _has_bfloat16_units(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    units = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.11 has it not
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


def optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the model's `hidden_matrices` and AdamW for the rest."""
    matrices = model.hidden_matrices() if config.muon_factor is not None else []
    rest = optim.adamw(
        model, config.weight_decay, config.beta1, config.beta2, config.epsilon, matrices, config.variance_limit
    )
    return [rest] + ([optim.muon(matrices, config.weight_decay, config.muon_factor)] if matrices else [])


def spread(model: nn.Module, config: Config, world: World) -> distributed.Alone:
    """The model on all processes, as the settings say."""
    if world.size == 1:
        return distributed.Alone(model)
    if config.parallel == "fsdp":
        return distributed.Shards(model, model.blocks() if hasattr(model, "blocks") else [])
    return distributed.Replicas(model, world, config.powersgd_rank)


class Run:
    """The moving parts of one training: model, optimizers, gradient scales, average, losses that the rate looks at."""

    def __init__(self, model: nn.Module, config: Config, world: World) -> None:
        self.model, self.config, self.world = model.train(), config, world
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.spread = spread(model, config, world)
        self.optimizers = optimizers(model, config)  # after the weights were shared out: it holds what each process has
        self.autocast_type = autocast_type(config.precision, self.device.type)
        self.scales = GradientScales(model.residual_paths(), world.size) if self.autocast_type == torch.float16 else None
        self.average = None
        if config.ema_decay is not None:
            self.average = optim.MovingAverage(model, config.ema_decay, config.ema_warmup)
        self.validation_losses: list[float] = []

    def update(self, batches: Sequence[Any], step: int, loss_of: StepLoss, seed: int) -> dict[str, float]:
        """One step over this process's micro-batches; returns what to log.

        Raises NotFinite, with nothing changed, if the loss or the gradient is not finite. In float16 a residual path whose
        gradient overflowed is no error: its scale shrinks and this update is left out.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        values = self._backward(batches, step, loss_of, seed)
        if self.scales and not self._unscale(step, values["loss"]):
            return values | {"is_skipped": 1.0, "learning_rate": self.learning_rate(step)}
        norm = optim.clip_gradients(self.model.parameters(), self.config.clip_norm)
        values["gradient_norm"] = float(distributed.gathered(norm))
        self._refuse_what_is_not_finite(step, values)
        values["learning_rate"] = self.learning_rate(step)
        for optimizer in self.optimizers:
            optim.set_learning_rate(optimizer, values["learning_rate"])
            optimizer.step()
        if self.average and (step + 1) % self.config.ema_every == 0:
            self.average.update(self.model)
        return values

    def learning_rate(self, step: int) -> float:
        """The rate of this update: a function of the step and, for the plateau rule, of the validation losses so far."""
        config = self.config
        decay_steps = config.decay_steps or config.steps
        if config.schedule == "cosine":
            peak, final = config.learning_rate, config.final_learning_rate
            return optim.learning_rate(step, peak, final, config.warmup_steps, decay_steps)
        halved = schedules.halvings(self.validation_losses, config.patience, config.least_gain)
        peak = config.learning_rate * 0.5**halved
        return optim.learning_rate(step, peak, peak, config.warmup_steps, decay_steps)

    def _backward(self, batches: Sequence[Any], step: int, loss_of: StepLoss, seed: int) -> dict[str, float]:
        """Gradients of the mean loss over all micro-batches of all processes; the means of what was logged."""
        if self.scales:
            self.scales.set()
        rows: list[dict[str, float]] = []
        first = self.world.rank * len(batches)
        for number, batch in enumerate(batches):
            rng = step_rng(seed, step, self.device, first + number)
            is_last = number == len(batches) - 1
            with torch.autocast(self.device.type, self.autocast_type, enabled=self.autocast_type is not None):
                loss, logged = self.spread.step(loss_of, batch, step, rng, is_last=is_last)
            (loss / len(batches)).backward()
            rows.append({"loss": loss.item(), **{name: float(value) for name, value in logged.items()}})
        return {name: self.world.mean(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}

    def _unscale(self, step: int, loss: float) -> bool:
        """Takes the scales out of the gradients; False where a residual path overflowed on some process."""
        finite = self.world.all(self.scales.are_finite())
        if not math.isfinite(loss) or self.scales.are_exhausted(finite):
            raise NotFinite(
                f"step {step}: the loss is {loss}, and float16 cannot hold the gradients at any scale; the weights were left as "
                "they were. Lower training.learning_rate, or set training.precision to bfloat16"
            )
        self.scales.unscale()
        self.scales.update(finite)
        if not finite.all():
            self.spread.forget()
        return bool(finite.all())

    def _refuse_what_is_not_finite(self, step: int, values: dict[str, float]) -> None:
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise NotFinite(
                f"step {step}: the loss is {values['loss']} and the gradient norm {values['gradient_norm']}; "
                "the weights were left as they were. Lower training.learning_rate, or set training.clip_norm"
            )

    def averaged(self) -> dict[str, Tensor]:
        """The weights to keep, whole."""
        return {name: distributed.gathered(tensor).detach().clone() for name, tensor in self._kept().items()}

    @torch.no_grad()
    def evaluated(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """`evaluate` of the averaged weights, put into the model for that long."""
        current = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self._kept())
        self.model.eval()
        values = self.spread.look(evaluate)
        self.model.load_state_dict(current)
        self.model.train()
        values = {name: float(value) for name, value in values.items()}
        self.validation_losses += [values["loss"]] if "loss" in values else []
        return values

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, flat and whole: it does not know how many processes wrote it."""
        parts: dict[str, dict[str, Tensor]] = {"model": self.model.state_dict(), "exchange": self.spread.tensors()}
        parts |= {f"optimizer{number}": optimizer_tensors(one) for number, one in enumerate(self.optimizers)}
        if self.average:
            parts["average"] = self.average.state
            parts["updates"] = {"average": torch.tensor(self.average.updates)}
        if self.scales:  # per replica, so that another number of processes can take them up
            parts["scales"] = {"values": self.scales.values / self.world.size, "since": self.scales.since}
        parts["validation"] = {"losses": torch.tensor(self.validation_losses, dtype=torch.float64)}
        flat = {f"{part}/{name}": value for part, state in parts.items() for name, value in state.items()}
        return {name: distributed.gathered(value) for name, value in flat.items()}

    def restore(self, checkpoint: Checkpoint | None) -> int:
        """Takes up a checkpoint, if there is one; returns the step to go on with."""
        if checkpoint is None:
            return 0
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in checkpoint.tensors.items():
            part, rest = name.split("/", 1)
            parts.setdefault(part, {})[rest] = value
        current = self.model.state_dict()
        self.model.load_state_dict({name: distributed.alike(value, current[name]) for name, value in parts["model"].items()})
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, parts[f"optimizer{number}"])
        self.spread.restore(parts.get("exchange", {}))
        if self.average:
            self.average.state = {name: distributed.alike(value, current[name]) for name, value in parts["average"].items()}
            self.average.updates = int(parts["updates"]["average"])
        if self.scales:
            self.scales.values, self.scales.since = parts["scales"]["values"] * self.world.size, parts["scales"]["since"]
        self.validation_losses = parts["validation"]["losses"].tolist()
        return checkpoint.step

    def _kept(self) -> dict[str, Tensor]:
        return self.average.state if self.average else self.model.state_dict()
