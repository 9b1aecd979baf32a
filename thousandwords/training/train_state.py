"""The state of one training and its update: model, optimizers, precision, moving average, processes.

`training.loop.fit` runs one update after the other; `tensors` is all that a resumed training needs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thousandwords.core.rng import step_rng
from thousandwords.nn import schedules
from thousandwords.nn.grad_scaling import GradientScales
from thousandwords.nn.image_losses import is_training_only, kept_weights
from thousandwords.nn.malloc import keep_freed_memory
from thousandwords.nn.schedules import evaluations_without_gain
from thousandwords.training import distributed, optimizers
from thousandwords.training.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from thousandwords.training.distributed import World

if TYPE_CHECKING:
    from thousandwords.training.config import StepLoss, TrainingConfig


class NotFinite(ArithmeticError):
    """The loss or the gradient is NaN or infinite. Raised before the update; the weights are unchanged."""


def autocast_dtype(precision: str, device: str) -> torch.dtype | None:
    """The dtype of matrix products, or None for float32: "auto" is bfloat16 on a GPU that has it."""
    if precision == "auto":
        return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else None
    if precision == "bfloat16_if_supported":
        return torch.bfloat16 if optimizers.has_bfloat16_units(device) else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the model's `muon_parameters` and AdamW for the rest. Neither has frozen
    parameters."""
    matrices = model.muon_parameters() if config.muon_lr_scale is not None else []
    matrices = [each for each in matrices if each.requires_grad]
    settings = (config.weight_decay, config.beta1, config.beta2, config.epsilon)
    if not matrices:
        return [optimizers.adamw(model, *settings, second_moment_clip=config.second_moment_clip)]
    muon = optimizers.Muon([{"params": matrices, "lr_scale": config.muon_lr_scale}], config.weight_decay)
    if sum(each.requires_grad for each in model.parameters()) == len(matrices):
        return [muon]
    return [optimizers.adamw(model, *settings, matrices, config.second_moment_clip), muon]


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the model that is kept, and those of its `training_only` parts."""
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        parts[is_training_only(name)].append(parameter)
    return parts


def held_out_loss(values: Mapping[str, float]) -> float | None:
    """The held-out loss of an evaluation; of an image tokenizer, which has none, minus its PSNR."""
    return values["loss"] if "loss" in values else -values["psnr_hard"] if "psnr_hard" in values else None


def parallelize(model: nn.Module, config: TrainingConfig, world: World) -> distributed.SingleProcess:
    """The model on all processes, by the configured strategy."""
    if world.size == 1:
        return distributed.SingleProcess(model)
    if config.strategy == "fsdp":
        return distributed.FSDP(model, model.blocks() if hasattr(model, "blocks") else [])
    return distributed.DDP(model, world, config.powersgd_rank)


class TrainState:
    """Model, optimizers, gradient scales, moving average, the held-out losses and the weights of the lowest."""

    def __init__(self, model: nn.Module, config: TrainingConfig, world: World) -> None:
        self.model, self.config, self.world = model.train(), config, world
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.parallel = parallelize(model, config, world)
        # after sharding: an optimizer has the parameters of its own process
        self.optimizers = build_optimizers(model, config)
        self.autocast_dtype = autocast_dtype(config.precision, self.device.type)
        self.scales = None
        if self.autocast_dtype == torch.float16:
            self.scales = GradientScales(model.residual_paths(), world.size)
        self.average = None
        if config.ema_decay is not None:
            self.average = optimizers.MovingAverage(model, config.ema_decay, config.ema_warmup)
        self.validation_losses: list[float] = []  # of all evaluations so far
        self.best: dict[str, Tensor] = {}  # with `keep: best`

    def update(self, batches: Sequence[Any], step: int, loss_of: StepLoss, seed: int) -> dict[str, float]:
        """One update from this process's micro-batches; returns the values to log.

        Raises NotFinite, with nothing changed, if the loss or the gradient is not finite. In float16 an
        overflow in the gradient of a residual path is no error: its scale shrinks, the update is skipped.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        values = self._backward(batches, step, loss_of, seed)
        if self.scales and not self._unscale(step, values["loss"]):
            return values | {"is_skipped": 1.0, "learning_rate": self.learning_rate(step)}
        clip_norm = math.inf if self.config.clip_norm is None else self.config.clip_norm
        kept, training_only = split_parameters(self.model)
        norm = torch.nn.utils.clip_grad_norm_(kept, clip_norm)
        values["gradient_norm"] = float(distributed.full_tensor(norm))
        torch.nn.utils.clip_grad_norm_(training_only, clip_norm)  # a network of its own, as in LlamaGen
        self._check_finite(step, values)
        values["learning_rate"] = self.learning_rate(step)
        for optimizer in self.optimizers:
            optimizers.set_learning_rate(optimizer, values["learning_rate"])
            optimizer.step()
        if hasattr(self.model, "after_update"):
            rng = step_rng(seed, step, self.device, part=-1)  # the same on every process
            values |= self.model.after_update(step, rng, self.world.gather)
        if self.average and (step + 1) % self.config.ema_every == 0:
            self.average.update(self.model)
        return values

    def learning_rate(self, step: int) -> float:
        """The learning rate of an update, from the step and (plateau rule) the validation losses so far."""
        config = self.config
        peak, final = config.learning_rate, config.final_learning_rate
        if config.schedule == "plateau":
            peak *= 0.5 ** schedules.halvings(self.validation_losses, config.patience)
            final = peak
        steps = config.decay_steps or config.steps
        return optimizers.learning_rate(step, peak, final, config.warmup_steps, steps)

    def _backward(self, batches: Sequence[Any], step: int, loss_of: StepLoss, seed: int) -> dict[str, float]:
        """Gradients of the mean loss over all micro-batches and processes; the means of the logged values."""
        if self.scales:
            self.scales.set()
        rows: list[dict[str, float]] = []
        first = self.world.rank * len(batches)
        for number, batch in enumerate(batches):
            rng = step_rng(seed, step, self.device, first + number)
            is_last = number == len(batches) - 1
            is_cast = self.autocast_dtype is not None
            with torch.autocast(self.device.type, self.autocast_dtype, enabled=is_cast):
                loss, logged = self.parallel.step(loss_of, batch, step, rng, is_last=is_last)
            (loss / len(batches)).backward()
            rows.append({"loss": loss.item(), **{name: float(value) for name, value in logged.items()}})
        return {name: self.world.mean(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}

    def _unscale(self, step: int, loss: float) -> bool:
        """Divide the scales out of the gradients; False where a residual path overflowed on any process."""
        finite = self.world.all(self.scales.are_finite())
        if not math.isfinite(loss) or self.scales.are_exhausted(finite):
            raise NotFinite(
                f"step {step}: the loss is {loss}, and float16 cannot hold the gradients at any scale; the weights "
                "were not changed. Lower training.learning_rate, or set training.precision to bfloat16"
            )
        self.scales.unscale()
        self.scales.update(finite)
        if not finite.all():
            self.parallel.reset_feedback()
        return bool(finite.all())

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise NotFinite(
                f"step {step}: the loss is {values['loss']} and the gradient norm {values['gradient_norm']}; "
                "the weights were not changed. Lower training.learning_rate, or set training.clip_norm"
            )

    @torch.no_grad()
    def evaluate(self, function: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """The values of `function` for the averaged weights, which are in the model during the call only."""
        current = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.model.state_dict() | self._final_state())
        self.model.eval()
        values = self.parallel.evaluate(function)
        self.model.load_state_dict(current)
        self.model.train()
        values = {name: float(value) for name, value in values.items()}
        if (loss := held_out_loss(values)) is not None:
            self.validation_losses.append(self.world.mean(loss))  # the same on every process
            if self.config.keep == "best" and evaluations_without_gain(self.validation_losses) == 0:
                self.best = {name: tensor.detach().clone() for name, tensor in self._final_state().items()}
        return values

    @property
    def is_done_early(self) -> bool:
        """Whether the last `stop_after` evaluations brought no lower held-out loss."""
        limit = self.config.stop_after
        return limit is not None and evaluations_without_gain(self.validation_losses) >= limit

    def final_weights(self) -> dict[str, Tensor]:
        """The weights of the trained model, whole: the average if there is one; with `keep: best` the best."""
        state = self.best or self._final_state()
        return {name: distributed.full_tensor(tensor).detach().clone() for name, tensor in state.items()}

    def _final_state(self) -> dict[str, Tensor]:
        return self.average.state if self.average else kept_weights(self.model)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, flat and whole: the same for any number of processes."""
        parts = {"model": self.model.state_dict(), "exchange": self.parallel.tensors()}
        for number, optimizer in enumerate(self.optimizers):
            parts[f"optimizer{number}"] = optimizer_tensors(optimizer)
        if self.average:
            parts["average"] = self.average.state
            parts["updates"] = {"average": torch.tensor(self.average.updates)}
        parts["best"] = self.best
        if self.scales:  # per replica, so that another number of processes can resume from them
            values = self.scales.values / self.world.size
            parts["scales"] = {"values": values, "since": self.scales.updates_since_shrink}
        parts["validation"] = {"losses": torch.tensor(self.validation_losses, dtype=torch.float64)}
        flat = {f"{part}/{name}": value for part, state in parts.items() for name, value in state.items()}
        return {name: distributed.full_tensor(value) for name, value in flat.items()}

    def restore(self, checkpoint: Checkpoint | None) -> int:
        """Restore a checkpoint, if there is one; returns the step to continue with."""
        if checkpoint is None:
            return 0
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in checkpoint.tensors.items():
            part, key = name.split("/", 1)
            parts[part][key] = value
        self.model.load_state_dict(self._like_model(parts["model"]))
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, parts[f"optimizer{number}"])
        self.parallel.restore(parts["exchange"])
        if self.average:
            self.average.state = self._like_model(parts["average"])
            self.average.updates = int(parts["updates"]["average"])
        if self.scales:
            self.scales.values = parts["scales"]["values"] * self.world.size
            self.scales.updates_since_shrink = parts["scales"]["since"]
        self.validation_losses = parts["validation"]["losses"].tolist()
        self.best = self._like_model(parts["best"])
        return checkpoint.step

    def _like_model(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of whole tensors, each stored as the model's own tensor of that name."""
        current = self.model.state_dict()
        return {name: distributed.copy_like(value, current[name]) for name, value in tensors.items()}
