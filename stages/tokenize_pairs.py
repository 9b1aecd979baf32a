"""Pairs + image tokenizer -> Parquet token shards (data/tokens), bound to that tokenizer by its fingerprint."""
from __future__ import annotations

from pathlib import Path

from stages._progress import progress
from stages._stage import Stage, arguments, stage
from stages._training import device_of
from thousandwords import components, images
from thousandwords.config import section
from thousandwords.pair_shards import PairReader, splits
from thousandwords.shards import Config, TokenHeader, TokenShardWriter, in_order


def tokenize_pairs(pairs: Path, tokenizer: Path, out: Path, run: Stage) -> None:
    config = section(run.params.get("tokens"), "tokens", Config)
    device = device_of(run)
    model = components.load("tokenizers", tokenizer, mend="dvc repro train_image_tokenizer").to(device)
    header = TokenHeader(model.header["kind"], model.fingerprint, model.vocab_size, model.scales, model.image_size)
    rows = 0
    with TokenShardWriter(out, header, config.rows_per_shard) as shards:
        for split in splits(pairs):
            reader = PairReader(pairs, split)
            batches = list(in_order(len(reader), config.batch_size))
            for indices in progress(batches, f"tokenize_pairs {split}", len(batches), "batch"):
                tokens = model.encode(images.to_float(reader.images(indices)).to(device)).cpu()
                keys, captions = [reader.key(i) for i in indices], [reader.captions(i) for i in indices]
                shards.write(split, keys, captions, tokens)
            rows += len(reader)
    run.record_metrics({"rows": rows, "words_per_picture": header.length})


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "tokenizer", "out", argv=argv)
    with stage("tokenize_pairs", options, "tokens") as run:
        tokenize_pairs(options.pairs, options.tokenizer, options.out, run)


if __name__ == "__main__":
    main()
