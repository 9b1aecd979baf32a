"""Tiny models of every kind of every family, and tiny artefacts: what the contract tests run on.

A new kind is found by itself (`every_kind`); it only needs sizes here, and the tests say so.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from thousandwords import components, text
from thousandwords.config import section
from thousandwords.shards import TokenHeader, TokenShardWriter

SIDE = 16  # pixels
TEXT_WORDS, TEXT_LENGTH = 270, 8
IMAGE_WORDS, SCALES = 12, (4,)  # what a generator is built for

# family -> kind -> the settings of a model that is built, trained for a step and drawn from in milliseconds
TINY = {
    "tokenizers": {
        "dvae": {"vocab_size": 12, "width": 8, "groups": 2, "blocks_per_group": 1, "codebook_width": 8, "patch": 2,
                 "stem_kernel": 3, "init_gain": 1.414},
    },
    "generators": {
        "transformer": {"num_layers": 3, "num_heads": 2, "width": 16, "kernel": 3, "init_std": 0.3},
    },
    "scorers": {
        "clip": {"embed_dim": 16, "vision_patch_size": 8, "vision_width": 16, "vision_layers": 1, "vision_heads": 2,
                 "text_width": 16, "text_layers": 1, "text_heads": 2, "context_length": 20},
    },
}  # fmt: skip
ARGUMENTS = {
    "tokenizers": {"image_size": SIDE},
    "generators": {
        "text_vocab_size": TEXT_WORDS,
        "text_length": TEXT_LENGTH,
        "image_vocab_size": IMAGE_WORDS,
        "scales": SCALES,
    },
    "scorers": {"image_size": SIDE},
}
CAPTIONS = [
    "a red square above a blue circle",
    "a small green star on sand",
    "a large red star left of a yellow square",
    "ein roter Stern über dem Meer",
]


def every_kind(family: str) -> list[str]:
    """All kinds there are, for pytest.mark.parametrize."""
    return components.kinds(family)


def tiny(family: str, kind: str, seed: int = 0) -> nn.Module:
    """A tiny model of that kind in evaluation mode; its first weights depend on `seed` alone."""
    assert kind in TINY[family], f"tests/tiny.py: give TINY[{family!r}][{kind!r}] the settings of a tiny model"
    _, config_class = components.component(family, kind)
    config = section(TINY[family][kind], kind, config_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return components.build(family, kind, config, **ARGUMENTS[family]).eval()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rngs(count: int, first: int = 0) -> list[torch.Generator]:
    """One generator per row, as `sample` wants them."""
    return [rng(first + row) for row in range(count)]


def pictures(count: int, seed: int = 0) -> Tensor:
    """(count, 3, SIDE, SIDE) in [0, 1], no two alike."""
    return torch.rand(count, 3, SIDE, SIDE, generator=rng(seed))


def captions_as_tokens(count: int) -> Tensor:
    """Captions of 3 to TEXT_LENGTH words: (count, TEXT_LENGTH) int64, -1 where one has ended."""
    words = torch.randint(TEXT_WORDS, (count, TEXT_LENGTH), generator=rng(1))
    lengths = torch.randint(3, TEXT_LENGTH + 1, (count, 1), generator=rng(2))
    return words.where(torch.arange(TEXT_LENGTH) < lengths, -1)


def image_tokens(count: int) -> Tensor:
    """(count, L) int64."""
    return torch.randint(IMAGE_WORDS, (count, sum(side * side for side in SCALES)), generator=rng(3))


def tiny_text() -> text.TextTokenizer:
    """A BPE of TEXT_WORDS words, most of them bytes."""
    return text.train(CAPTIONS * 3, text.Config(TEXT_WORDS, TEXT_LENGTH))


def write_parts(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Four tiny models that fit together, as the stages leave them: {part: its folder}."""
    parts = {name: folder / name for name in ("text_tokenizer", "image_tokenizer", "generator", "scorer")}
    text.save(tiny_text(), parts["text_tokenizer"])
    components.save(tiny("tokenizers", "dvae", seed), parts["image_tokenizer"])
    components.save(tiny("generators", "transformer", seed), parts["generator"])
    components.save(tiny("scorers", "clip", seed), parts["scorer"])
    return parts


HEADER = TokenHeader("dvae", "3f9c" * 16, IMAGE_WORDS, SCALES, SIDE)


def write_shards(folder: Path, splits: dict[str, int], header: TokenHeader = HEADER, rows_per_shard: int = 4) -> None:
    """Token shards of {split: rows}; row 3 of train has the key "train-3" and two captions."""
    with TokenShardWriter(folder, header, rows_per_shard) as shards:
        for split, count in splits.items():
            keys = [f"{split}-{row}" for row in range(count)]
            captions = [[CAPTIONS[row % len(CAPTIONS)], f"picture {row}"] for row in range(count)]
            shards.write(split, keys, captions, shard_tokens(count, header))


def shard_tokens(count: int, header: TokenHeader = HEADER) -> Tensor:
    """What `write_shards` writes: (count, views * L) int64."""
    return torch.randint(header.vocab_size, (count, header.views * header.length), generator=rng(4))


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    """The same bytes but for one bit."""
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def flips(path: Path, count: int) -> Iterator[int]:
    """Visits `count` positions spread over a file, from its first byte to its last, one bit flipped at each."""
    whole = path.read_bytes()
    for number in range(count):
        position = number * (len(whole) - 1) // (count - 1)
        path.write_bytes(flipped(whole, position, bit=number % 8))
        yield position
    path.write_bytes(whole)
