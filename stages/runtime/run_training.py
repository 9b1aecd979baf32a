"""Call fit() with the runtime of a stage: batches loaded ahead, checkpoints, progress bar, MLflow, signals that
save first, several processes, images while it trains."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from stages.runtime.stage import Stage
from stages.runtime.training_view import MakeSheet, TrainingView
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.core.progress import ProgressBar
from thousandwords.data.prefetch import Prefetcher
from thousandwords.data.sampler import positions
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import StepLoss, TrainingConfig
from thousandwords.training.loop import fit
from thousandwords.training.optimizers import learning_rate


def train(
    context: Stage,
    model: nn.Module,
    config: TrainingConfig,
    *,
    batch_of: Callable[[Sequence[int]], Any],
    to_device: Callable[[list[Any]], Sequence[Any]],
    loss_of: StepLoss,
    evaluate: Callable[[nn.Module], dict[str, float]],
    settings: object,
    inputs: tuple[str, ...],
    make_sheet: MakeSheet | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train; returns (the weights to save, the curves). `batch_of` loads rows, `to_device` takes the micro-batches
    of a step; `settings` and `inputs` identify the run that may be resumed; `make_sheet` makes a sheet of images of the
    model, at as many evaluations as their time allows."""
    checkpoints, world = Checkpoints(context.state_folder(settings, *inputs)), context.world
    if world.is_main_process:
        continue_shorter_run(context, checkpoints, config)
    world.wait()
    bar = ProgressBar(context.name, config.steps) if world.is_main_process else None
    view, is_finished = TrainingView(context, config.steps, make_sheet), False

    def micro_batches_of(step: int) -> list[Any]:
        rows = positions(step, config.batch_size)
        return [batch_of(part) for part in world.micro_batches(rows, config.gradient_accumulation)]

    def log(step: int, values: dict[str, float]) -> None:
        context.log(step, values)
        view.log(step, values)
        context.save_state()

    def progress(step: int, note: str) -> None:
        view.progress(step)
        if bar:
            bar.update(step, note)

    def evaluate_and_show(model: nn.Module) -> dict[str, float]:
        values = evaluate(model)  # fit() has reported the step before it evaluates
        view.evaluated(model)
        return values

    context.is_stoppable = True
    try:
        num_workers = config.num_loader_workers(world.device)
        with Prefetcher(micro_batches_of, config.steps, num_workers) as micro_batches:
            weights, rows = fit(
                model,
                config,
                batches_of=lambda step: to_device(micro_batches(step)),
                loss_of=loss_of,
                seed=context.seed,
                evaluate=evaluate_and_show,
                checkpoints=checkpoints,
                log=log,
                progress=progress,
                is_stopped=lambda: context.stop_requested,
                world=world,
            )
            is_finished = True
    finally:
        context.is_stoppable = False
        view.close(is_finished)
        if bar:
            bar.close()
    if world.is_main_process:
        _report_end(context, config, rows)
    return weights, rows


def _report_end(context: Stage, config: TrainingConfig, rows: list[dict[str, float]]) -> None:
    """Say where a training that stopped early ended, and of which step the kept weights are."""
    last, notes = int(rows[-1]["step"]), []
    if last < config.steps:
        notes.append(f"stopped at step {last}: no gain in {config.stop_after} evaluations")
    for row in rows:
        if row.get("is_kept"):
            context.record_metrics({"kept_step": row["step"]})
            notes.append(f"kept the weights of step {int(row['step'])}, the best on held-out data")
    if notes:
        print(f"{context.name}: {'; '.join(notes)}", file=sys.stderr, flush=True)


def continue_shorter_run(context: Stage, checkpoints: Checkpoints, config: TrainingConfig) -> None:
    """Take over the last checkpoint of a run with fewer `training.steps` and else the same settings, inputs and
    code, unless this run has a checkpoint of its own; and say what that does to the learning rate."""
    if checkpoints.has_any():
        return
    for folder, steps in context.shorter_runs():
        with contextlib.suppress(DamagedArtefact):
            if checkpoint := Checkpoints(folder).newest():
                checkpoints.save(checkpoint.step, checkpoint.tensors, checkpoint.state)
                context.continued_from = checkpoint.step
                print(describe_continuation(context.name, checkpoint.step, steps, config), flush=True)
                return


def describe_continuation(name: str, step: int, steps: int, config: TrainingConfig) -> str:
    """Which run is continued, and its learning rate before and after."""
    message = f"{name}: goes on from step {step:,} of the run with training.steps {steps:,}, up to step {config.steps:,}"
    if config.schedule == "plateau" or config.decay_steps:
        return f"{message}; the learning rate goes on as planned"
    rates = [
        learning_rate(at, config.learning_rate, config.final_learning_rate, config.warmup_steps, end)
        for at, end in ((max(0, step - 1), steps), (step, config.steps))
    ]
    return (
        f"{message}; the cosine now ends there, so the learning rate goes from {rates[0]:.2g} to {rates[1]:.2g}. "
        f"For one schedule from step 0, delete .ckpt/{name} and run again"
    )
