"""Pairs + image tokenizer -> Parquet token shards (data/tokens), bound to that tokenizer by its fingerprint.

Each shard of pairs is encoded by itself and kept in `.store/tokens`, outside DVC, known by all that its words follow from: where
one input of a hundred has changed one is encoded, and a run that was killed goes on with the shard it was at. Token shards are
cut from those rows as they always were.
"""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from stages._engine import engine_of, run_units
from stages._progress import progress
from stages._stage import Stage, arguments, code_digest, stage
from stages._training import device_of
from thousandwords import components, images
from thousandwords.augmentation import generator_crop, view_rng
from thousandwords.config import section
from thousandwords.errors import UserError
from thousandwords.files import fingerprint, read_manifest, write_bytes, write_manifest
from thousandwords.mixing import MIXTURES
from thousandwords.pair_shards import MEND, PairReader, shards_of, splits
from thousandwords.shards import Config, TokenHeader, TokenShardWriter, in_order, read_shard, token_table
from thousandwords.store import STORE, Store
from thousandwords.tables import table_bytes

THREADS = 8  # that decode and crop the next pictures while a GPU encodes; Pillow lets others work meanwhile
Input = TypeVar("Input")
Output = TypeVar("Output")
ROWS = "rows.parquet"  # what an entry of the store holds: one shard's rows


@dataclass(frozen=True)
class Work:
    """What the words of any one shard follow from, beside its pixels: what a worker is told once."""

    pairs: Path
    manifest: dict
    splits: dict[str, str]  # of each shard
    tokenizer: Path
    header: TokenHeader
    config: Config
    seed: int
    is_shown: bool  # the progress within each shard


def tokenize_pairs(pairs: Path, tokenizer: Path, out: Path, run: Stage) -> None:
    """One shard of pairs at a time; what an earlier run made of the very same shard is taken from the store."""
    config, engine = section(run.params.get("tokens"), "tokens", Config), engine_of(run.params, device_of(run))
    manifest = read_manifest(pairs, mend=MEND)
    model = components.load("tokenizers", tokenizer, mend="dvc repro train_image_tokenizer")
    header = TokenHeader(
        model.header["kind"], model.fingerprint, model.vocab_size, model.scales, model.image_size, config.views_per_image
    )
    split_of = {name: split for split in splits(pairs) for name in shards_of(manifest, split)}
    keys = {name: key_of(manifest, split, name, header, config, run) for name, split in split_of.items()}
    store = Store(STORE / "tokens")
    store.begin(list(keys.values()))
    missing = [name for name in keys if not store.has(keys[name])]
    work = Work(pairs, manifest, split_of, tokenizer, header, config, run.seed, engine.is_alone)
    encode_here = partial(encoder, model, work)
    open_worker = encode_here if engine.is_alone else partial(open_encoder, work)
    for name, table in run_units(open_worker, missing, engine, "tokenize_pairs"):
        store.get(keys[name], partial(_keep, header=header, table=table))
    mixtures = {name: manifest["facts"][name] for name in (MIXTURES,) if name in manifest["facts"]}
    with TokenShardWriter(out, header, config.rows_per_shard, mixtures) as shards:
        for name, split in split_of.items():

            def again(entry: Path, name: str = name) -> None:  # it was there, but damaged
                _keep(entry, header, encode_here(device_of(run))(name))

            shards.add(split, read_shard(store.get(keys[name], again) / ROWS, header))
    rows = sum(manifest["files"][name]["rows"] for name in keys)
    print(f"tokenize_pairs: {len(missing)} of {len(keys)} shards encoded, the others were known", flush=True)
    run.record_metrics({"rows": rows, "words_per_picture": header.length, "shards_encoded": len(missing)})


def _keep(entry: Path, header: TokenHeader, table: pa.Table) -> None:
    write_bytes(entry / ROWS, table_bytes(table))
    write_manifest(entry, {ROWS: table.num_rows}, {"tokens": header.facts()})


def open_encoder(work: Work, device: str) -> Callable[[str], pa.Table]:
    """What a worker does with a shard's name: `encoder` of the tokenizer that it finds for itself."""
    model = components.load("tokenizers", work.tokenizer, mend="dvc checkout, or dvc repro")
    if model.fingerprint != work.header.tokenizer_fingerprint:
        raise UserError(
            f"{work.tokenizer} holds tokenizer {model.fingerprint[:12]} here, but {work.header.tokenizer_fingerprint[:12]} "
            "where the stage was started. Run there and here: dvc checkout"
        )
    return encoder(model, work, device)


def encoder(model: nn.Module, work: Work, device: str) -> Callable[[str], pa.Table]:
    """The name of a shard of pairs -> its rows as rows of token shards."""
    model = model.to(device)

    def encode(name: str) -> pa.Table:
        reader = PairReader.of_shard(work.pairs, work.manifest, name)
        label = f"tokenize_pairs {name}" if work.is_shown else None
        return encode_shard(model, reader, work.splits[name], work.header, work.config, work.seed, label)

    return encode


def key_of(manifest: dict, split: str, name: str, header: TokenHeader, config: Config, run: Stage) -> str:
    """The name of all that the words of one shard follow from: its bytes, the tokenizer, the settings, code and machine.

    Batch size and device are among them: they move the last bits of a logit, and so now and then a word. The seed is not, where
    nothing is drawn.
    """
    drawn = {"augmentation": config.augmentation, "seed": run.seed} if _is_cropped(split, config) else None
    return fingerprint({
        "shard": manifest["files"][name]["sha256"], "image_size": manifest["facts"]["image_size"], "drawn": drawn,
        "tokens": header.facts(), "batch_size": config.batch_size, "device": device_of(run).partition(":")[0],
        "torch": torch.__version__, "code": code_digest(),
    })  # fmt: skip


def encode_shard(
    model: nn.Module, reader: PairReader, split: str, header: TokenHeader, config: Config, seed: int, label: str | None
) -> pa.Table:
    """The rows of one shard of pairs as rows of token shards."""
    tables, batches = [], list(in_order(len(reader), config.batch_size))
    shown = partial(views_of, reader, config=config, seed=seed, is_cropped=_is_cropped(split, config))
    threads = min(THREADS, os.cpu_count() or 1) if next(model.parameters()).is_cuda else 0
    made = ahead(shown, batches, threads)
    for indices, views in zip(progress(batches, label, len(batches), "batch"), made, strict=True):
        tokens = torch.cat([_encode(model, view) for view in views], dim=1).repeat(1, config.views_per_image // len(views))
        keys, captions = [reader.key(i) for i in indices], [reader.captions(i) for i in indices]
        tables.append(token_table(header, keys, captions, tokens))
    return pa.concat_tables(tables)


def ahead(make: Callable[[Input], Output], inputs: Iterable[Input], threads: int) -> Iterator[Output]:
    """`map`, the next few outputs being made by threads meanwhile; without threads, just `map`."""
    if not threads:
        yield from map(make, inputs)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for one in inputs:
            waiting.append(pool.submit(make, one))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _is_cropped(split: str, config: Config) -> bool:
    return split == "train" and config.augmentation != "none"


def views_of(reader: PairReader, indices: list[int], config: Config, seed: int, is_cropped: bool) -> list[np.ndarray]:
    """What is encoded of some pictures, each uint8 (B, H, W, 3): all random crops of theirs, or the plain squares once.

    Held-out pictures are squares: no draw should decide what is measured on them, yet all splits have as many views.
    """
    if not is_cropped:
        return [reader.images(indices)]
    return [crops(reader, indices, view, seed) for view in range(config.views_per_image)]


def crops(reader: PairReader, indices: list[int], view: int, seed: int) -> np.ndarray:
    """One random crop of each picture, uint8 (B, H, W, 3); it hangs on (seed, key, view), not on order or batch."""
    size, rngs = reader.image_size, [view_rng(seed, reader.key(index), view) for index in indices]
    return np.stack([generator_crop(one, size, rng) for one, rng in zip(reader.pictures(indices), rngs, strict=True)])


def _encode(model: nn.Module, pictures: np.ndarray) -> Tensor:
    return model.encode(images.to_float(pictures, next(model.parameters()).device)).cpu()


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "tokenizer", "out", argv=argv)
    with stage("tokenize_pairs", options, "tokens") as run:
        tokenize_pairs(options.pairs, options.tokenizer, options.out, run)


if __name__ == "__main__":
    import stages.tokenize_pairs  # under its own name, by which workers, and the digest of the code, know what is in it

    stages.tokenize_pairs.main()
