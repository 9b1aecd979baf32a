"""Call fit() with the runtime of a stage: batches loaded ahead, checkpoints, progress bar, MLflow, signals that
save first, several processes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from stages.runtime.stage import Stage
from thousandwords.core.progress import ProgressBar
from thousandwords.data.prefetch import Prefetcher
from thousandwords.data.sampler import positions
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import StepLoss, TrainingConfig
from thousandwords.training.loop import fit


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
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train; returns (the weights to save, the curves). `batch_of` loads rows, `to_device` takes the micro-batches
    of a step; `settings` and `inputs` identify the run that may be resumed."""
    checkpoints, world = Checkpoints(context.state_folder(settings, *inputs)), context.world
    bar = ProgressBar(context.name, config.steps) if world.is_main_process else None

    def micro_batches_of(step: int) -> list[Any]:
        rows = positions(step, config.batch_size)
        return [batch_of(part) for part in world.micro_batches(rows, config.gradient_accumulation)]

    def log(step: int, values: dict[str, float]) -> None:
        context.log(step, values)
        context.save_state()

    context.is_stoppable = True
    try:
        with Prefetcher(
            micro_batches_of, config.steps, config.num_loader_workers(world.device)
        ) as micro_batches:
            return fit(
                model,
                config,
                batches_of=lambda step: to_device(micro_batches(step)),
                loss_of=loss_of,
                seed=context.seed,
                evaluate=evaluate,
                checkpoints=checkpoints,
                log=log,
                progress=bar.update if bar else lambda step, note: None,
                is_stopped=lambda: context.stop_requested,
                world=world,
            )
    finally:
        context.is_stoppable = False
        if bar:
            bar.close()
