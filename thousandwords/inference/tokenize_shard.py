"""Encode one shard of pairs to token rows: what a worker of the stage `tokenize_pairs` does."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.progress import progress
from thousandwords.data.augmentation import generator_crop, view_rng
from thousandwords.data.images import to_float
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.prefetch import prefetch_map
from thousandwords.data.sampler import sequential_batches
from thousandwords.data.token_shards import TokenHeader, TokensConfig, token_table

MAX_THREADS = 8  # that decode and crop the next images while a GPU encodes; Pillow releases the GIL


@dataclass(frozen=True)
class EncodeTask:
    """What the tokens of all shards depend on, besides their pixels; sent to each worker once."""

    pairs: Path
    manifest: dict
    splits: dict[str, str]  # of each shard
    tokenizer: Path
    header: TokenHeader
    config: TokensConfig
    seed: int
    show_progress: bool  # within each shard


def open_encoder(task: EncodeTask, device: str) -> Callable[[str], pa.Table]:
    """`make_encoder` in a worker, which loads the tokenizer itself; raises UserError if it is another one."""
    model = components.load("image_tokenizers", task.tokenizer, fix="dvc checkout, or dvc repro")
    if model.fingerprint != task.header.tokenizer_fingerprint:
        raise UserError(
            f"{task.tokenizer} holds tokenizer {model.fingerprint[:12]} here, but {task.header.tokenizer_fingerprint[:12]} "
            "where the stage was started. Run there and here: dvc checkout"
        )
    return make_encoder(model, task, device)


def make_encoder(model: nn.Module, task: EncodeTask, device: str) -> Callable[[str], pa.Table]:
    """A function from the name of a shard of pairs to its rows as rows of token shards."""
    model, config = model.to(device), task.config
    threads = min(MAX_THREADS, os.cpu_count() or 1) if next(model.parameters()).is_cuda else 0

    def encode(name: str) -> pa.Table:
        reader = PairReader.from_shard(task.pairs, task.manifest, name)
        label = f"tokenize_pairs {name}" if task.show_progress else None
        batches, tables = list(sequential_batches(len(reader), config.batch_size)), []
        make_views = partial(views_of, reader, task.splits[name], config, task.seed)
        all_views = prefetch_map(make_views, batches, threads)
        for indices, views in zip(progress(batches, label, len(batches), "batch"), all_views, strict=True):
            tokens = torch.cat([_encode(model, view) for view in views], dim=1)
            tokens = tokens.repeat(1, config.views_per_image // len(views))
            keys, captions = [reader.key(i) for i in indices], [reader.captions(i) for i in indices]
            tables.append(token_table(task.header, keys, captions, tokens))
        return pa.concat_tables(tables)

    return encode


def is_cropped(split: str, config: TokensConfig) -> bool:
    """Whether random crops of a split's images are encoded: of training images only."""
    return split == "train" and config.augmentation != "none"


def views_of(
    reader: PairReader, split: str, config: TokensConfig, seed: int, indices: list[int]
) -> list[np.ndarray]:
    """The images to encode, one uint8 (B, H, W, 3) per view: all random crops, or of held-out images the plain
    squares once, so that no random choice affects a metric."""
    if not is_cropped(split, config):
        return [reader.images(indices)]
    return [crops(reader, indices, view, seed) for view in range(config.views_per_image)]


def crops(reader: PairReader, indices: list[int], view: int, seed: int) -> np.ndarray:
    """One random crop of each image, uint8 (B, H, W, 3): a function of (seed, key, view), not of the batch."""
    rngs = [view_rng(seed, reader.key(index), view) for index in indices]
    pairs = zip(reader.whole_images(indices), rngs, strict=True)
    return np.stack([generator_crop(image, reader.image_size, rng) for image, rng in pairs])


def _encode(model: nn.Module, images: np.ndarray) -> Tensor:
    return model.encode(to_float(images, next(model.parameters()).device)).cpu()
