"""Pairs + image tokenizer -> Parquet token shards (data/tokens), bound to that tokenizer by its fingerprint.

Each shard of pairs is encoded separately, and its rows are cached in `.store/tokens`, outside DVC, by
everything that its tokens depend on. So if one of a hundred shards has changed, one is encoded, and a run
that was killed resumes at the shard where it was. Token shards are then written from the cached rows, with the second
captions that a captioner wrote (stage `recaption`).
"""

from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from stages.runtime.program import program
from stages.runtime.stage import Stage, code_digest
from thousandwords import components
from thousandwords.core.cache import STORE, Store
from thousandwords.core.config import section
from thousandwords.core.files import fingerprint, write_bytes
from thousandwords.core.manifest import read_manifest, write_manifest
from thousandwords.core.parquet import table_bytes
from thousandwords.data.pair_shards import FIX, shard_names, splits
from thousandwords.data.recaptions import open_recaptions, replace_captions
from thousandwords.data.sampler import MIXTURES
from thousandwords.data.token_shards import TokenHeader, TokensConfig, TokenShardWriter, read_shard
from thousandwords.inference.tokenize_shard import EncodeTask, is_cropped, make_encoder, open_encoder
from thousandwords.parallel.engine import engine_from_params, run_items

ROWS = "rows.parquet"  # the file of a store's entry: the token rows of one shard


def tokenize_pairs(
    pairs: Path, tokenizer: Path, out: Path, context: Stage, recaptions: Path | None = None
) -> None:
    config = section(context.params.get("tokens"), "tokens", TokensConfig)
    engine = engine_from_params(context.params, context.world.device)
    manifest, second_captions = read_manifest(pairs, fix=FIX), open_recaptions(recaptions, pairs)
    model = components.load("image_tokenizers", tokenizer, fix="dvc repro train_image_tokenizer")
    described = model.header["kind"], model.fingerprint, model.vocab_size, model.scales, model.image_size
    header = TokenHeader(*described, config.views_per_image)
    split_of = {name: split for split in splits(pairs) for name in shard_names(manifest, split)}
    keys = {
        name: store_key(manifest, split, name, header, config, context) for name, split in split_of.items()
    }
    store = Store(STORE / "tokens")
    store.begin(list(keys.values()))
    missing = [name for name in keys if not store.has(keys[name])]
    is_single = engine.is_single_process
    task = EncodeTask(pairs, manifest, split_of, tokenizer, header, config, context.seed, is_single)
    encoder_here = partial(make_encoder, model, task)
    open_worker = encoder_here if is_single else partial(open_encoder, task)
    for name, table in run_items(open_worker, missing, engine, "tokenize_pairs"):
        store.get(keys[name], partial(_write_entry, header=header, table=table))
    mixtures = {name: manifest["facts"][name] for name in (MIXTURES,) if name in manifest["facts"]}
    with TokenShardWriter(out, header, config.rows_per_shard, mixtures) as shards:
        for name, split in split_of.items():

            def encode_again(entry: Path, name: str = name) -> None:  # if the entry is damaged
                _write_entry(entry, header, encoder_here(context.world.device)(name))

            table = read_shard(store.get(keys[name], encode_again) / ROWS, header)
            shards.add(split, replace_captions(table, second_captions.of_shard(name)))
    rows = sum(manifest["files"][name]["rows"] for name in keys)
    encoded = f"{len(missing)} of {len(keys)} shards encoded, the others were in the cache"
    print(f"tokenize_pairs: {encoded}", flush=True)
    context.record_metrics({"rows": rows, "words_per_picture": header.length, "shards_encoded": len(missing)})


def _write_entry(entry: Path, header: TokenHeader, table: pa.Table) -> None:
    write_bytes(entry / ROWS, table_bytes(table))
    write_manifest(entry, {ROWS: table.num_rows}, {"tokens": header.metadata()})


def store_key(
    manifest: dict, split: str, name: str, header: TokenHeader, config: TokensConfig, context: Stage
) -> str:
    """The cache key of one shard: a hash of its bytes, the tokenizer, the settings, the code and the device.

    Batch size and kind of device change the last bits of a logit, and so sometimes a token. The seed is included
    only if crops are random.
    """
    crops = {"augmentation": config.augmentation, "seed": context.seed} if is_cropped(split, config) else None
    return fingerprint(
        {
            "shard": manifest["files"][name]["sha256"],
            "image_size": manifest["facts"]["image_size"],
            "drawn": crops,
            "tokens": header.metadata(),
            "batch_size": config.batch_size,
            "device": context.world.device.partition(":")[0],
            "torch": torch.__version__,
            "code": code_digest(),
        }
    )


main = program(tokenize_pairs, "tokens")


if __name__ == "__main__":
    main()
