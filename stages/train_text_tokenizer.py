"""The training captions -> a byte-level BPE vocabulary (models/text_tokenizer)."""
from __future__ import annotations

import sys
from pathlib import Path

from stages._stage import Stage, arguments, stage
from thousandwords import text
from thousandwords.config import section
from thousandwords.pair_shards import read_captions


def train_text_tokenizer(pairs: Path, out: Path, run: Stage) -> None:
    config = section(run.params.get("text_tokenizer"), "text_tokenizer", text.Config)
    captions = [caption for several in read_captions(pairs, "train") for caption in several]
    tokenizer = text.train(captions, config)
    text.save(tokenizer, out)
    lengths = [len(tokenizer.words(caption)) for caption in captions]
    cut = sum(length > config.text_length for length in lengths)
    run.record_metrics(
        {
            "vocab_size": tokenizer.vocab_size,
            "captions": len(captions),
            "captions_cut": cut,
            "mean_tokens": sum(lengths) / len(lengths),
            "longest": max(lengths),
        }
    )
    if cut:
        print(f"train_text_tokenizer: {tokenizer.told_cut(cut, len(captions))}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    options = arguments(__doc__, "pairs", "out", argv=argv)
    with stage("train_text_tokenizer", options, "text_tokenizer") as run:
        train_text_tokenizer(options.pairs, options.out, run)


if __name__ == "__main__":
    main()
