"""python -m tests.helpers.distributed_worker FOLDER JOBS: tiny trainings in the processes of torchrun.

JOBS is a JSON list of {"name", "resume", "stop", "model"} and settings of TrainingConfig. Each process writes
FOLDER/<name>.<rank>.json with its losses and rows; the main process also writes <name>.safetensors with the
final weights. With {"is_scorer": true} a CLIP is trained, without further settings.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from tests.helpers import tiny_models
from thousandwords import components
from thousandwords.core.special_tokens import PAD
from thousandwords.data.sampler import epochs_and_rows, positions
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import World, init_processes
from thousandwords.training.loop import Stopped, fit

ROWS, STEPS = 20, 20
BASE = {
    "batch_size": 8,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "clip_norm": 4.0,
    "ema_decay": 0.9,
    "log_every": 1,
    "evaluate_every": 10,
    "checkpoint_every": 10,
}


def train_generator(
    name: str,
    folder: Path,
    world: World,
    *,
    stop: int | None = None,
    resume: str = "",
    model: dict | None = None,
    **settings,
) -> None:
    """Train the tiny transformer until step `stop`, from the checkpoints of the run `resume` if set."""
    config = TrainingConfig(steps=STEPS, **{**BASE, **settings})
    first = tiny_models.tiny("generators", "transformer")
    changed = dataclasses.replace(first.config, **(model or {}))
    generator = components.build("generators", "transformer", changed, **tiny_models.ARGUMENTS["generators"])
    generator.load_state_dict(first.state_dict())
    text, tokens, batches, done = tiny_models.captions_as_tokens(ROWS), tiny_models.image_tokens(ROWS), [], []

    def batches_of(step: int) -> list:
        batch = positions(step, config.batch_size)
        parts = [
            [row for _, row in epochs_and_rows(share, ROWS, 0)]
            for share in world.micro_batches(batch, config.gradient_accumulation)
        ]
        indices = [row for _, row in epochs_and_rows(batch, ROWS, 0)]
        num_text_tokens = int((text[indices] != PAD).sum()) / (world.size * config.gradient_accumulation)
        batches.append(parts)
        return [(text[part], tokens[part], num_text_tokens) for part in parts]

    def loss_of(model, batch, step, rng):
        return model.loss(*batch[:2], step, rng, num_text_tokens=batch[2])

    def evaluate(model):
        return {"loss": model.loss(text[:4], tokens[:4], 0, torch.Generator())[0]}

    try:
        state, history = fit(
            generator,
            config,
            batches_of=batches_of,
            loss_of=loss_of,
            seed=0,
            evaluate=evaluate,
            world=world,
            checkpoints=Checkpoints(folder / "checkpoints" / (resume or name)),
            progress=lambda step, note: done.append(step),
            is_stopped=lambda: bool(done) and done[-1] == stop,
        )
    except Stopped:
        return
    rows = [row["loss"] for row in history]
    (folder / f"{name}.{world.rank}.json").write_text(
        json.dumps({"losses": rows, "batches": batches, "history": history})
    )
    if world.is_main_process:
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")


def train_scorer(name: str, folder: Path, world: World) -> None:
    """Train the tiny CLIP, whose loss compares all images and captions of a batch."""
    config = TrainingConfig(steps=STEPS, **{**BASE, "checkpoint_every": STEPS})
    scorer = tiny_models.tiny("scorers", "clip")
    images, captions = (
        tiny_models.random_images(ROWS),
        [f"{number} red stars on sand" for number in range(ROWS)],
    )

    def batches_of(step: int) -> list:
        (share,) = world.micro_batches(positions(step, config.batch_size))
        rows = [row for _, row in epochs_and_rows(share, ROWS, 0)]
        return [(images[rows], [captions[row] for row in rows])]

    def loss_of(model, batch, step, rng):
        return model.loss(*batch, step, rng, world.gather_rows)

    state, history = fit(scorer, config, batches_of=batches_of, loss_of=loss_of, seed=0, world=world)
    rows = [row["loss"] for row in history]
    (folder / f"{name}.{world.rank}.json").write_text(json.dumps({"losses": rows}))
    if world.is_main_process:
        safetensors.torch.save_file(
            {name: value.contiguous() for name, value in state.items()}, folder / f"{name}.safetensors"
        )


def main() -> None:
    torch.set_num_threads(1)
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    with init_processes("cpu") as world:
        for job in jobs:
            (train_scorer if job.pop("is_scorer", False) else train_generator)(
                job.pop("name"), folder, world, **job
            )


if __name__ == "__main__":
    main()
