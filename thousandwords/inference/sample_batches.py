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
    """The three models that turn a prompt into images."""

    text_tokenizer: TextTokenizer
    image_tokenizer: nn.Module
    generator: nn.Module

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        return self.text_tokenizer.fingerprint, self.image_tokenizer.fingerprint, self.generator.fingerprint

    def to(self, device: str) -> Models:
        return Models(self.text_tokenizer, self.image_tokenizer.to(device), self.generator.to(device))


@dataclass(frozen=True)
class SampleTask:
    """What all batches depend on; sent to each worker once."""

    folders: tuple[Path, Path, Path]
    fingerprints: tuple[str, str, str]
    prompts: list[tuple[str, str]]  # (split, prompt)
    settings: SamplingConfig
    seed: int
    fixed_tokens: np.ndarray | None  # (prompts, L); a tensor would be sent through shared memory


def load_models(text_tokenizer: Path, image_tokenizer: Path, generator: Path) -> Models:
    """The three models, verified; raises UserError where they do not belong together."""
    models = Models(
        load(text_tokenizer),
        components.load("image_tokenizers", image_tokenizer, fix="dvc repro train_image_tokenizer"),
        components.load("generators", generator, fix="dvc repro train_generator"),
    )
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
        images = to_uint8(decode_in_batches(models.image_tokenizer, batch.tokens))
        rows = [
            dict(zip(COLUMNS, (prompt, *task.prompts[prompt], candidate, seed), strict=True))
            for prompt, candidate, seed in zip(batch.prompt_ids, batch.candidates, batch.seeds, strict=True)
        ]
        return sample_table(rows, batch.tokens, images)

    return sample
