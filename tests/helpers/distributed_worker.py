"""python -m tests.helpers.distributed_worker FOLDER JOBS: tiny trainings in the processes of torchrun.

JOBS is a JSON list of {"name", "resume", "stop", "model"} and settings of TrainingConfig. Each process writes
FOLDER/<name>.<rank>.json with its losses and rows; the main process also writes <name>.safetensors with the
final weights. With {"is_scorer": true} a CLIP is trained, without further settings; with {"is_tokenizer": true} a
VQ-VAE, with settings of its model, and an adversary with the settings in "adversary".
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from tests.helpers import tiny_models
from thousandwords import components
from thousandwords.core.special_tokens import PAD
from thousandwords.data.sampler import epochs_and_rows, positions
from thousandwords.nn.adversary import AdversaryConfig
from thousandwords.nn.image_losses import ImageLossConfig, ImageLosses
from thousandwords.training.checkpoints import Checkpoints
from thousandwords.training.config import TrainingConfig
from thousandwords.training.distributed import World, init_processes
from thousandwords.training.loop import Stopped, fit

ROWS, STEPS = 20, 12
BASE = {
    **{"batch_size": 8, "learning_rate": 0.01, "warmup_steps": 2, "weight_decay": 0.1, "clip_norm": 4.0},
    **{"ema_decay": 0.9, "log_every": 1, "evaluate_every": 6, "checkpoint_every": 6},
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
        parts = [rows_at(share) for share in world.micro_batches(batch, config.gradient_accumulation)]
        num_text_tokens = int((text[rows_at(batch)] != PAD).sum()) / (
            world.size * config.gradient_accumulation
        )
        batches.append(parts)
        return [(text[part], tokens[part], num_text_tokens) for part in parts]

    with contextlib.suppress(Stopped):
        state, history = fit(
            generator,
            config,
            batches_of=batches_of,
            loss_of=lambda model, batch, step, rng: model.loss(
                *batch[:2], step, rng, num_text_tokens=batch[2]
            ),
            seed=0,
            evaluate=lambda model: {"loss": model.loss(text[:4], tokens[:4], 0, torch.Generator())[0]},
            world=world,
            checkpoints=Checkpoints(folder / "checkpoints" / (resume or name)),
            progress=lambda step, note: done.append(step),
            is_stopped=lambda: bool(done) and done[-1] == stop,
        )
        write_results(name, folder, world, state, history, batches=batches)


def train_scorer(name: str, folder: Path, world: World) -> None:
    """Train the tiny CLIP, whose loss compares all images and captions of a batch."""
    images, captions = tiny_models.random_images(ROWS), [f"{row} red stars on sand" for row in range(ROWS)]

    def batch_of(rows: list[int]) -> tuple:
        return images[rows], [captions[row] for row in rows]

    def loss_of(model, batch, step, rng):
        return model.loss(*batch, step, rng, world.gather_rows)

    train_on_images(name, folder, world, tiny_models.tiny("scorers", "clip"), batch_of, loss_of)


def train_image_tokenizer(
    name: str, folder: Path, world: World, adversary: dict | None = None, **model
) -> None:
    """Train the tiny VQ-VAE, whose codes follow the latents of all processes."""
    config = dataclasses.replace(tiny_models.tiny("image_tokenizers", "vqvae").config, **model)
    torch.manual_seed(0)
    sizes = tiny_models.ARGUMENTS["image_tokenizers"]
    tokenizer = components.build("image_tokenizers", "vqvae", config, **sizes)
    if adversary:
        tokenizer.training_only = ImageLosses(ImageLossConfig(AdversaryConfig(**adversary)))
    images = tiny_models.random_images(ROWS)
    tokenizer.prepare([images], torch.Generator().manual_seed(0))

    def loss_of(model, batch, step, rng):
        return model.loss(batch, step, rng)

    train_on_images(name, folder, world, tokenizer, images.__getitem__, loss_of, learning_rate=0.003)


def train_on_images(
    name: str, folder: Path, world: World, model, batch_of: Callable, loss_of: Callable, **settings
) -> None:
    config = TrainingConfig(steps=STEPS, **{**BASE, "checkpoint_every": STEPS, **settings})

    def batches_of(step: int) -> list:
        return [batch_of(rows_at(share)) for share in world.micro_batches(positions(step, config.batch_size))]

    state, history = fit(model, config, batches_of=batches_of, loss_of=loss_of, seed=0, world=world)
    write_results(name, folder, world, state, history)


def rows_at(places: range) -> list[int]:
    return [row for _, row in epochs_and_rows(places, ROWS, 0)]


def write_results(name: str, folder: Path, world: World, state: dict, history: list, **more) -> None:
    values = {"losses": [row["loss"] for row in history], "history": history, **more}
    (folder / f"{name}.{world.rank}.json").write_text(json.dumps(values))
    if world.is_main_process:
        state = {key: value.contiguous() for key, value in state.items()}
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    with init_processes("cpu") as world:
        for job in jobs:
            train = train_scorer if job.pop("is_scorer", False) else train_generator
            train = train_image_tokenizer if job.pop("is_tokenizer", False) else train
            train(job.pop("name"), folder, world, **job)


if __name__ == "__main__":
    main()
