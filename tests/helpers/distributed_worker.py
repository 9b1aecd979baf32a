"""python -m tests.distributed_worker FOLDER JOBS: some tiny trainings, in as many processes as torchrun has started.

JOBS is a JSON list of {"name", "steps", "resume", "stop", "settings"}; each process leaves FOLDER/<name>.<rank>.json with its
losses and the rows it saw, the first one also <name>.safetensors with the weights that were kept. With {"is_scorer": true} it is
a CLIP that is trained, which takes no further settings.
"""
from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from tests import tiny
from thousandwords import components
from thousandwords.checkpoints import Checkpoints
from thousandwords.distributed import World, joined
from thousandwords.generators import PAD
from thousandwords.loader import places, positions
from thousandwords.training import Config, Stopped, fit

ROWS, STEPS = 20, 20
BASE = {"batch_size": 8, "learning_rate": 0.01, "warmup_steps": 2, "weight_decay": 0.1, "clip_norm": 4.0, "ema_decay": 0.9,
        "log_every": 1, "evaluate_every": 10, "checkpoint_every": 10}  # fmt: skip


def work(name: str, folder: Path, world: World, *, stop: int | None = None, resume: str = "", model: dict | None = None,
         **settings) -> None:
    """Trains the tiny transformer, on from the checkpoints of the run `resume` if that is given, until step `stop`."""
    config = Config(steps=STEPS, **{**BASE, **settings})
    first = tiny.tiny("generators", "transformer")
    changed = dataclasses.replace(first.config, **(model or {}))
    generator = components.build("generators", "transformer", changed, **tiny.ARGUMENTS["generators"])
    generator.load_state_dict(first.state_dict())
    text, tokens, seen, done = tiny.captions_as_tokens(ROWS), tiny.image_tokens(ROWS), [], []

    def batches_of(step: int) -> list:
        batch = positions(step, config.batch_size)
        parts = [[row for _, row in places(share, ROWS, 0)] for share in world.shares(batch, config.accumulation)]
        indices = [row for _, row in places(batch, ROWS, 0)]
        words = int((text[indices] != PAD).sum()) / (world.size * config.accumulation)
        seen.append(parts)
        return [(text[part], tokens[part], words) for part in parts]

    def loss_of(one, batch, step, rng):
        return one.loss(*batch[:2], step, rng, text_words=batch[2])

    def evaluate(one):
        return {"loss": one.loss(text[:4], tokens[:4], 0, torch.Generator())[0]}

    try:
        state, history = fit(
            generator, config, batches_of=batches_of, loss_of=loss_of, seed=0, evaluate=evaluate, world=world,
            checkpoints=Checkpoints(folder / "checkpoints" / (resume or name)), progress=lambda step, note: done.append(step),
            is_stopped=lambda: bool(done) and done[-1] == stop,
        )  # fmt: skip
    except Stopped:
        return
    rows = [row["loss"] for row in history.rows]
    (folder / f"{name}.{world.rank}.json").write_text(json.dumps({"losses": rows, "seen": seen, "history": history.rows}))
    if world.is_first:
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")


def compare(name: str, folder: Path, world: World) -> None:
    """Trains the tiny CLIP, whose loss compares all pictures and captions of a batch."""
    config = Config(steps=STEPS, **{**BASE, "checkpoint_every": STEPS})
    scorer = tiny.tiny("scorers", "clip")
    pictures, captions = tiny.pictures(ROWS), [f"{number} red stars on sand" for number in range(ROWS)]

    def batches_of(step: int) -> list:
        (share,) = world.shares(positions(step, config.batch_size))
        rows = [row for _, row in places(share, ROWS, 0)]
        return [(pictures[rows], [captions[row] for row in rows])]

    def loss_of(one, batch, step, rng):
        return one.loss(*batch, step, rng, world.gather_rows)

    state, history = fit(scorer, config, batches_of=batches_of, loss_of=loss_of, seed=0, world=world)
    rows = [row["loss"] for row in history.rows]
    (folder / f"{name}.{world.rank}.json").write_text(json.dumps({"losses": rows}))
    if world.is_first:
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, folder / f"{name}.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    with joined("cpu") as world:
        for job in jobs:
            (compare if job.pop("is_scorer", False) else work)(job.pop("name"), folder, world, **job)


if __name__ == "__main__":
    main()
