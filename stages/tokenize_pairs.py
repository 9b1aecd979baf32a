"""Pairs + image tokenizer -> Parquet token shards (data/tokens), bound to that tokenizer by its fingerprint."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stages._progress import progress
from stages._stage import Stage, arguments, stage
from stages._training import device_of
from thousandwords import components, images
from thousandwords.augmentation import generator_crop, view_rng
from thousandwords.config import section
from thousandwords.pair_shards import PairReader, splits
from thousandwords.shards import Config, TokenHeader, TokenShardWriter, in_order


def tokenize_pairs(pairs: Path, tokenizer: Path, out: Path, run: Stage) -> None:
    config = section(run.params.get("tokens"), "tokens", Config)
    model = components.load("tokenizers", tokenizer, mend="dvc repro train_image_tokenizer").to(device_of(run))
    header = TokenHeader(
        model.header["kind"], model.fingerprint, model.vocab_size, model.scales, model.image_size, config.views_per_image
    )
    rows = 0
    with TokenShardWriter(out, header, config.rows_per_shard) as shards:
        for split in splits(pairs):
            reader = PairReader(pairs, split)
            batches = list(in_order(len(reader), config.batch_size))
            for indices in progress(batches, f"tokenize_pairs {split}", len(batches), "batch"):
                if split == "train":
                    tokens = encode_views(model, reader, indices, config, run.seed)
                else:
                    tokens = encode_square(model, reader, indices, config.views_per_image)
                keys, captions = [reader.key(i) for i in indices], [reader.captions(i) for i in indices]
                shards.write(split, keys, captions, tokens)
            rows += len(reader)
    run.record_metrics({"rows": rows, "words_per_picture": header.length})


def encode_views(model: nn.Module, reader: PairReader, indices: list[int], config: Config, seed: int) -> Tensor:
    """The words of all views of some training pictures, one after the other: (B, views × L)."""
    if config.augmentation == "none":
        return encode_square(model, reader, indices)
    return torch.cat([_encode(model, crops(reader, indices, view, seed)) for view in range(config.views_per_image)], dim=1)


def encode_square(model: nn.Module, reader: PairReader, indices: list[int], copies: int = 1) -> Tensor:
    """The words of the plain squares, (B, copies × L).

    So for held-out pictures: no draw should decide what is measured on them, yet all splits have as many views.
    """
    return _encode(model, reader.images(indices)).repeat(1, copies)


def crops(reader: PairReader, indices: list[int], view: int, seed: int) -> np.ndarray:
    """One random crop of each picture, uint8 (B, H, W, 3); it hangs on (seed, key, view), not on order or batch."""
    size, rngs = reader.image_size, [view_rng(seed, reader.key(index), view) for index in indices]
    return np.stack([generator_crop(one, size, rng) for one, rng in zip(reader.pictures(indices), rngs, strict=True)])


def _encode(model: nn.Module, pictures: np.ndarray) -> Tensor:
    return model.encode(images.to_float(pictures).to(next(model.parameters()).device)).cpu()


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "tokenizer", "out", argv=argv)
    with stage("tokenize_pairs", options, "tokens") as run:
        tokenize_pairs(options.pairs, options.tokenizer, options.out, run)


if __name__ == "__main__":
    main()
