"""fit() with what a stage has: checkpoints that resume, a progress bar, the MLflow run, signals that save first, processes."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from stages._progress import Bar
from stages._stage import Stage
from thousandwords import training
from thousandwords.checkpoints import Checkpoints


def train(
    run: Stage,
    model: nn.Module,
    config: training.Config,
    *,
    batches_of: Callable[[int], Sequence[Any]],
    loss_of: training.StepLoss,
    evaluate: Callable[[nn.Module], dict[str, float]],
    settings: object,
    inputs: tuple[str, ...],
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """(the weights to keep, the curves). `settings` and `inputs` name the run that may be resumed."""
    checkpoints = Checkpoints(run.state_folder(settings, *inputs))
    bar = Bar(run.name, config.steps) if run.world.is_first else None
    run.is_stoppable = True

    def log(step: int, values: dict[str, float]) -> None:
        run.log(step, values)
        run.save_state()

    try:
        state, history = training.fit(
            model,
            config,
            batches_of=batches_of,
            loss_of=loss_of,
            seed=run.seed,
            evaluate=evaluate,
            checkpoints=checkpoints,
            log=log,
            progress=bar.at if bar else lambda step, note: None,
            is_stopped=lambda: run.stop_requested,
            world=run.world,
        )
    finally:
        run.is_stoppable = False
        if bar:
            bar.close()
    return state, history.rows


def device_of(run: Stage) -> str:
    """Where this process computes: cpu, cuda, or one GPU of several."""
    return run.world.device
