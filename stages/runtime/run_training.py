"""Call fit() with the runtime of a stage: checkpoints, progress bar, MLflow, signals that save first, several
processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from stages.runtime.stage import Stage
from thousandwords.core.progress import ProgressBar
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import StepLoss, TrainingConfig
from thousandwords.training.loop import fit


def train(
    context: Stage,
    model: nn.Module,
    config: TrainingConfig,
    *,
    batches_of: Callable[[int], Sequence[Any]],
    loss_of: StepLoss,
    evaluate: Callable[[nn.Module], dict[str, float]],
    settings: object,
    inputs: tuple[str, ...],
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train; returns (the weights to save, the curves). `settings` and `inputs` identify the run that may be
    resumed."""
    checkpoints = Checkpoints(context.state_folder(settings, *inputs))
    bar = ProgressBar(context.name, config.steps) if context.world.is_main_process else None
    context.is_stoppable = True

    def log(step: int, values: dict[str, float]) -> None:
        context.log(step, values)
        context.save_state()

    try:
        return fit(
            model,
            config,
            batches_of=batches_of,
            loss_of=loss_of,
            seed=context.seed,
            evaluate=evaluate,
            checkpoints=checkpoints,
            log=log,
            progress=bar.update if bar else lambda step, note: None,
            is_stopped=lambda: context.stop_requested,
            world=context.world,
        )
    finally:
        context.is_stoppable = False
        if bar:
            bar.close()
