"""Byte-level BPE (with the `tokenizers` library), trained on the captions of the data set and saved as data.

The text side of the paper (arXiv 2102.12092 §2.2). Byte-level, so every language and emoji has a tokenization. Padding
is -1: the generator has a learned padding embedding per position, so padding is not in the vocabulary.

With BPE-dropout (arXiv 1910.13267) a caption has another tokenization each time that training reads it. The library's
random numbers for it cannot be seeded, so it is implemented here on the library's merges.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from thousandwords.core.config import ConfigError, section
from thousandwords.core.files import write_bytes, write_json
from thousandwords.core.init_models import fix_of, init_folder
from thousandwords.core.manifest import read_manifest, write_manifest
from thousandwords.core.special_tokens import PAD
from thousandwords.text.normalize import normalize
from thousandwords.text.words import words

# torch is imported where tensors are made: processes that prepare pairs start faster without it
if TYPE_CHECKING:
    from torch import Tensor

BYTES = 256
NAME = "text_tokenizer"  # of its section in params.yaml
WORDS = "words.json"  # the words of the training captions, sorted


@dataclass(frozen=True)
class TextTokenizerConfig:
    """The section `text_tokenizer` of params.yaml."""

    vocab_size: int = 16384  # BPE tokens, including the 256 bytes (paper §2.2)
    text_length: int = 256  # max tokens of a caption; longer ones are truncated and counted (paper §2.2)
    init: str | None = None  # a finished tokenizer to copy instead: a folder or models:/thousandwords@alias

    def __post_init__(self) -> None:
        if self.vocab_size < BYTES:
            raise ValueError(
                f"text_tokenizer.vocab_size is {self.vocab_size}; byte-level BPE needs {BYTES} or more"
            )
        if self.text_length < 1:
            raise ValueError(f"text_tokenizer.text_length is {self.text_length}; a caption needs 1 or more")


def read_config(block: dict) -> TextTokenizerConfig:
    """The section `text_tokenizer`, with the sizes of the tokenizer of `init` where there is one."""
    folder = init_folder(block, NAME) if isinstance(block, dict) else None
    config = section(block, NAME, TextTokenizerConfig)
    if folder is None:
        return config
    tokenizer = load(folder, fix_of(NAME, folder))
    sizes = {"vocab_size": tokenizer.vocab_size, "text_length": tokenizer.text_length}
    for key, size in sizes.items():
        # captions can have fewer tokens than the vocabulary allows
        if key in block and (block[key] < size or (key == "text_length" and block[key] != size)):
            raise ConfigError(
                f"params.yaml: {NAME}.{key} is {block[key]}, but {NAME}.init, {block['init']}, has {size}. "
                f"Remove {NAME}.{key}, or {NAME}.init"
            )
    return replace(config, **sizes)


class TextTokenizer:
    """Captions to text tokens (B, T), and back."""

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        text_length: int,
        fingerprint: str = "",
        known_words: frozenset[str] | None = None,
    ) -> None:
        self.bpe, self.text_length, self.fingerprint = bpe, text_length, fingerprint
        self.known_words = (
            known_words  # of all training captions; None in tokenizers saved before they were kept
        )
        self.vocab_size = bpe.get_vocab_size()
        model = json.loads(bpe.to_str())["model"]
        self._ids: dict[str, int] = model["vocab"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}

    def tokenize(self, caption: str) -> list[int]:
        """All tokens of one caption, not truncated."""
        return self.bpe.encode(normalize(caption)).ids

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B, T) int64, padded with -1; captions of more than T tokens are truncated."""
        return pad_rows([entry.ids for entry in self._encoded(captions)], self.text_length)

    def _encoded(self, captions: Sequence[str]) -> list[tokenizers.Encoding]:
        return self.bpe.encode_batch_fast([normalize(caption) for caption in captions])

    def tokenize_with_dropout(self, caption: str, dropout: float, rng: np.random.Generator) -> list[int]:
        """`tokenize` with each possible merge skipped with probability `dropout`."""
        parts = [part for part, _ in self.bpe.pre_tokenizer.pre_tokenize_str(normalize(caption))]
        uniforms = _uniforms(rng)
        return [self._ids[token] for part in parts for token in self._merge(part, dropout, uniforms)]

    def encode_with_dropout(
        self, captions: Sequence[str], dropout: float, rngs: Sequence[np.random.Generator]
    ) -> Tensor:
        """`encode` with BPE-dropout, one random generator for each caption: (B, T) int64."""
        pairs = zip(captions, rngs, strict=True)
        rows = [self.tokenize_with_dropout(caption, dropout, rng) for caption, rng in pairs]
        return pad_rows(rows, self.text_length)

    def _merge(self, part: str, dropout: float, uniforms: Iterator[float]) -> list[str]:
        """Bytes -> tokens: apply the earliest merge that is not skipped, until none is left (algorithm 1)."""
        tokens = list(part)
        ranks = [self._ranks.get(pair) for pair in itertools.pairwise(tokens)]
        while True:
            best = index = None
            for position, rank in enumerate(ranks):
                if rank is None or (dropout and next(uniforms) < dropout):
                    continue
                if best is None or rank < best:
                    best, index = rank, position
            if index is None:
                return tokens
            tokens[index : index + 2] = [tokens[index] + tokens[index + 1]]
            first = max(0, index - 1)  # the merged token and its neighbors have new pairs
            pairs = itertools.pairwise(tokens[first : index + 2])
            ranks[first : index + 2] = [self._ranks.get(pair) for pair in pairs]

    def decode(self, tokens: Tensor) -> str:
        """One row of tokens (T,) -> its text, without padding."""
        return self.bpe.decode([token for token in tokens.tolist() if token != PAD]).removeprefix(" ")

    def count_truncated(self, captions: Iterable[str]) -> int:
        """How many captions have more than `text_length` tokens (with dropout there are more)."""
        count, captions = 0, iter(captions)
        while part := list(itertools.islice(captions, 1024)):  # only one part is in memory
            count += sum(len(entry.ids) > self.text_length for entry in self._encoded(part))
        return count

    def text_read(self, prompt: str) -> str:
        """The part of a prompt that the model reads: all of it, or its first `text_length` tokens."""
        tokens = self.tokenize(prompt)[: self.text_length]
        return self.bpe.decode(tokens).removeprefix(" ").rstrip("\ufffd")  # half a character

    def is_truncated(self, prompt: str) -> bool:
        return len(self.tokenize(prompt)) > self.text_length

    def unseen_words(self, prompt: str) -> list[str]:
        """The words of a prompt that no training caption has; [] where the tokenizer does not know them."""
        found = dict.fromkeys(words(prompt))
        return [] if self.known_words is None else [word for word in found if word not in self.known_words]

    def describe_prompt(self, prompt: str) -> list[str]:
        """Sentences about what of a prompt the model cannot use: it is too long, or has words never trained on."""
        notes = []
        if self.is_truncated(prompt):
            notes.append(
                f"the prompt is longer than the {self.text_length} tokens that the model reads. "
                f'It reads only: "{self.text_read(prompt)}"'
            )
        if unseen := self.unseen_words(prompt):
            notes.append(f"no training caption has: {', '.join(unseen)}")
        return notes

    def describe_truncation(self, num_truncated: int, count: int) -> str:
        """A sentence about truncated captions: "3 of 2,000 captions have more than 24 tokens; …"."""
        return (
            f"{num_truncated:,} of {count:,} captions have more than {self.text_length} tokens; the rest of each is ignored. "
            "To read more, raise text_tokenizer.text_length or vocab_size"
        )


def pad_rows(tokens: Sequence[list[int]], length: int) -> Tensor:
    """Rows truncated or padded: pad_rows([[5, 9]], 4) -> [[5, 9, -1, -1]], (B, length) int64."""
    import torch

    # through numpy: making a tensor from lists of Python ints takes longer than the BPE
    rows = np.full((len(tokens), length), PAD, np.int64)
    for row, ids in zip(rows, tokens, strict=True):
        row[: len(ids)] = ids[:length]
    return torch.from_numpy(rows)


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1) from `rng`, made in blocks: the same numbers in a tenth of the time."""
    while True:
        yield from rng.random(64).tolist()


def train(captions: Iterable[str], config: TextTokenizerConfig) -> TextTokenizer:
    """Byte-level BPE with at most `config.vocab_size` tokens; the same for the same captions in any order."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    # sorted: for equal frequencies the library's merges depend on the order of first occurrence
    captions = sorted(normalize(caption) for caption in captions)
    bpe.train_from_iterator(captions, trainer)
    return TextTokenizer(bpe, config.text_length, known_words=words_of_all(captions))


def words_of_all(captions: Iterable[str]) -> frozenset[str]:
    """The distinct words of captions."""
    return frozenset(word for caption in captions for word in words(caption))


def save(tokenizer: TextTokenizer, folder: Path) -> str:
    """Write tokenizer.json, config.json, words.json and the manifest; return the fingerprint."""
    folder = Path(folder)
    write_bytes(folder / "tokenizer.json", tokenizer.bpe.to_str(pretty=True).encode())
    write_json(folder / "config.json", {"text_length": tokenizer.text_length})
    names = ["tokenizer.json", "config.json"]
    if tokenizer.known_words is not None:
        write_json(folder / WORDS, sorted(tokenizer.known_words))
        names.append(WORDS)
    return write_manifest(folder, dict.fromkeys(names), {})["sha256"]


def load(folder: Path, fix: str = "dvc repro train_text_tokenizer") -> TextTokenizer:
    """The tokenizer saved in `folder`, verified."""
    manifest = read_manifest(folder, fix=fix)
    bpe = tokenizers.Tokenizer.from_str((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((Path(folder) / "config.json").read_bytes())
    known_words = None
    if WORDS in manifest["files"]:
        known_words = frozenset(json.loads((Path(folder) / WORDS).read_bytes()))
    return TextTokenizer(bpe, config["text_length"], manifest["sha256"], known_words)
