"""The training captions -> a byte-level BPE vocabulary (models/text_tokenizer)."""

import sys
from pathlib import Path

from stages.runtime.program import program
from stages.runtime.stage import Stage
from thousandwords.core.config import section
from thousandwords.data.pair_shards import read_captions
from thousandwords.text.bpe import TextTokenizerConfig, save, train


def train_text_tokenizer(pairs: Path, out: Path, context: Stage) -> None:
    config = section(context.params.get("text_tokenizer"), "text_tokenizer", TextTokenizerConfig)
    captions = [caption for texts in read_captions(pairs, "train") for caption in texts]
    tokenizer = train(captions, config)
    save(tokenizer, out)
    lengths = [len(tokenizer.tokenize(caption)) for caption in captions]
    num_truncated = sum(length > config.text_length for length in lengths)
    context.record_metrics(
        {
            "vocab_size": tokenizer.vocab_size,
            "captions": len(captions),
            "captions_cut": num_truncated,
            "mean_tokens": sum(lengths) / len(lengths),
            "longest": max(lengths),
        }
    )
    if num_truncated:
        message = tokenizer.describe_truncation(num_truncated, len(captions))
        print(f"train_text_tokenizer: {message}", file=sys.stderr, flush=True)


main = program(train_text_tokenizer, "text_tokenizer")


if __name__ == "__main__":
    main()
