"""Sample and decode one batch of candidates: what a worker of the stage `sample_images` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.data.images import to_uint8
from thousandwords.inference.batched import decode_in_batches
from thousandwords.inference.candidates import sample_batch
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.sample_shards import COLUMNS, sample_table
from thousandwords.text.bpe import TextTokenizer, load


@dataclass(frozen=True)
class Models:
    """The models that turn a prompt into images."""

    text_tokenizer: TextTokenizer
    image_tokenizer: nn.Module  # with the decoder, if there is one
    generator: nn.Module
    fingerprints: tuple[str, ...]  # of all of them

    def to(self, device: str) -> Models:
        tokenizer, generator = self.image_tokenizer.to(device), self.generator.to(device)
        return Models(self.text_tokenizer, tokenizer, generator, self.fingerprints)


@dataclass(frozen=True)
class SampleTask:
    """What all batches depend on; sent to each worker once."""

    folders: tuple[Path, ...]  # the arguments of load_models
    fingerprints: tuple[str, ...]
    prompts: list[tuple[str, str]]  # (split, prompt)
    settings: SamplingConfig
    seed: int
    fixed_tokens: np.ndarray | None  # (prompts, L); a tensor would be sent through shared memory


def load_models(text_tokenizer: Path, image_tokenizer: Path, decoder: Path, generator: Path) -> Models:
    """The models, verified; raises UserError where they do not belong together."""
    loaded = (
        load(text_tokenizer),
        components.load("image_tokenizers", image_tokenizer, fix="dvc repro train_image_tokenizer"),
        components.load("decoders", decoder, fix="dvc repro train_decoder"),
        components.load("generators", generator, fix="dvc repro train_generator"),
    )
    fingerprints = tuple(model.fingerprint for model in loaded)
    models = Models(loaded[0], components.with_decoder(*loaded[1:3]), loaded[3], fingerprints)
    header = models.generator.header
    for name in ("text_tokenizer", "image_tokenizer"):
        fingerprint = getattr(models, name).fingerprint
        if header[name] != fingerprint:
            raise UserError(
                f"models/generator was trained with {name} {header[name][:12]}, but models/{name} holds {fingerprint[:12]}. "
                "Run: dvc repro train_generator"
            )
    return models


def open_sampler(task: SampleTask, device: str) -> Callable[[int], pa.Table]:
    """`make_sampler` in a worker, which loads the models itself; raises UserError if they are others."""
    models = load_models(*task.folders)
    if models.fingerprints != task.fingerprints:
        raise UserError(
            "the models here are not those where the stage was started. Run there and here: dvc checkout"
        )
    return make_sampler(models, task, device)


def make_sampler(models: Models, task: SampleTask, device: str) -> Callable[[int], pa.Table]:
    """A function from the number of a batch to its rows of a sample shard."""
    models = models.to(device)
    fixed_tokens = None if task.fixed_tokens is None else torch.tensor(task.fixed_tokens)
    prompts = [prompt for _, prompt in task.prompts]

    @torch.no_grad()
    def sample(number: int) -> pa.Table:
        batch = sample_batch(
            models.generator, models.text_tokenizer, prompts, task.settings, task.seed, number, fixed_tokens
        )
        images = to_uint8(decode_in_batches(components.ranked_by(models.image_tokenizer), batch.tokens))
        rows = [
            dict(zip(COLUMNS, (prompt, *task.prompts[prompt], candidate, seed), strict=True))
            for prompt, candidate, seed in zip(batch.prompt_ids, batch.candidates, batch.seeds, strict=True)
        ]
        return sample_table(rows, batch.tokens, images)

    return sample
