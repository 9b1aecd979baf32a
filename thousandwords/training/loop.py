"""fit(): batch -> loss -> step -> log -> evaluate -> save, for any model.

Batch, noise and learning rate of a step are functions of (seed, step). So a run that was killed and resumes
from a checkpoint gives bit for bit the result of a run that was never stopped (on the same machine with the
same number of threads).
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from thousandwords.core.errors import UserError
from thousandwords.nn.schedules import evaluations_without_gain
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import Log, StepLoss, TrainingConfig
from thousandwords.training.distributed import SINGLE_PROCESS, World
from thousandwords.training.train_state import TrainState


class Stopped(Exception):
    """The training was asked to stop; a checkpoint of this step has been written."""


def check_model(model: nn.Module, config: TrainingConfig) -> None:
    """Raise UserError where the model does not support a setting."""
    has_muon_parameters = hasattr(model, "muon_parameters") and model.muon_parameters()
    if config.muon_lr_scale is not None and not has_muon_parameters:
        raise UserError(
            "training.muon_lr_scale is set, but this model has no muon_parameters. Set it to null"
        )
    if config.steps < getattr(model, "min_steps", 0):
        raise UserError(
            f"training.steps is {config.steps}, but this model is ready only after {model.min_steps} updates: until then "
            "image tokens have random orders. Set more steps, or lower the model's random_order_steps"
        )
    if getattr(model, "needs_whole_batches", False) and config.gradient_accumulation != 1:
        raise UserError(
            "training.gradient_accumulation splits a batch into micro-batches, but this model's loss compares all "
            "pairs of a batch. Set it to 1"
        )
    if config.strategy == "fsdp" and getattr(model, "needs_whole_weights", False):
        raise UserError(
            "training.strategy is fsdp, but this model starts and moves its codes as a whole. Set it to ddp"
        )
    parts = getattr(model, "training_only", nn.Module())
    if config.strategy == "fsdp" and any(weight.requires_grad for weight in parts.parameters()):
        raise UserError(
            "training.strategy is fsdp, but the adversary of this model needs whole weights. Set it to ddp"
        )
    if config.precision == "float16" and not hasattr(model, "residual_paths"):
        raise UserError(
            "training.precision is float16, but this model has no residual_paths whose gradients could be "
            "scaled. Set it to bfloat16 or float32"
        )


def fit(
    model: nn.Module,
    config: TrainingConfig,
    *,
    batches_of: Callable[[int], Sequence[Any]],
    loss_of: StepLoss,
    seed: int,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log = lambda step, values: None,
    progress: Callable[[int, str], None] = lambda step, note: None,
    is_stopped: Callable[[], bool] = lambda: False,
    world: World = SINGLE_PROCESS,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train `model` for at most `config.steps` updates; returns the weights (averaged or the best, if configured)
    and the curves; with `keep: best` the row of the kept weights is marked "is_kept".

    `batches_of(step)` returns this process's micro-batches (usually one; `World.micro_batches` says which
    rows), and `loss_of(model, batch, step, rng)` the loss of a batch and the values to log. With `checkpoints`
    the run resumes from the newest one. All processes of `world` return the same. Raises NotFinite before a
    bad update, and Stopped after a checkpoint when `is_stopped()` is true on any process.
    """
    check_model(model, config)
    state = TrainState(model, config, world)
    checkpoint = checkpoints.newest() if checkpoints else None
    start = state.restore(checkpoint)
    rows = checkpoint.state["history"] if checkpoint else []  # so that a resumed curve has no gap
    for step in range(start, start if state.is_done_early else config.steps):
        values = state.update(batches_of(step), step, loss_of, seed)
        done = step + 1
        is_last = done == config.steps
        progress(done, f"loss {values['loss']:.4f}")
        if evaluate and (done % config.evaluate_every == 0 or is_last):
            values |= {f"validation/{name}": value for name, value in state.evaluate(evaluate).items()}
            _check_held_out_loss(config, state)
            is_last = is_last or state.is_done_early
        if done % config.log_every == 0 or is_last or any(name.startswith("validation/") for name in values):
            rows.append({"step": done, **values})
            log(done, values)
        must_stop = world.any(is_stopped())
        if checkpoints and (done % config.checkpoint_every == 0 or must_stop or is_last):
            tensors = state.tensors()  # a collective call: all processes take part
            if world.is_main_process:
                checkpoints.save(done, tensors, {"history": rows})
            world.wait()
        if must_stop and not is_last:
            raise Stopped(f"stopped after step {done}")
        if is_last:
            break
    return state.final_weights(), _mark_kept(rows, state) if state.best else rows


def _check_held_out_loss(config: TrainingConfig, state: TrainState) -> None:
    needed = {"schedule": ("plateau", "cosine"), "keep": ("best", "last")}
    needed |= {"stop_after": (config.stop_after, "null")} if config.stop_after else {}
    for name, (value, instead) in needed.items():
        if getattr(config, name) == value and not state.validation_losses:
            raise UserError(
                f"training.{name} is {value}, but this model's evaluation returns no loss. Set it to {instead}"
            )


def _mark_kept(rows: list[dict[str, float]], state: TrainState) -> list[dict[str, float]]:
    """The rows of the curves, that of the kept weights with "is_kept": 1.0."""
    kept = len(state.validation_losses) - 1 - evaluations_without_gain(state.validation_losses)
    evaluated = [row for row in rows if any(name.startswith("validation/") for name in row)]
    return [{**row, "is_kept": 1.0} if row is evaluated[kept] else row for row in rows]
