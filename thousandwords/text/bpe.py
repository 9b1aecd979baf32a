"""Byte-level BPE, trained on the data set's own captions (on the `tokenizers` library), and saved as data.

The paper's text side (arXiv 2102.12092 §2.2): lower-cased captions, up to 256 tokens of a vocabulary of 16,384. Byte-level,
so that any language and any emoji has a spelling and nothing is ever unknown. Pads are -1 here: the generator has a learned
pad for each position, so a pad is no word of the vocabulary.

With BPE-dropout (Provilkov et al., arXiv 1910.13267) a caption has another spelling each time that training reads it. The
library draws such spellings from random numbers that nobody can seed, so they are found here, from its merges.
"""
from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from thousandwords.files import read_manifest, write_bytes, write_json, write_manifest

if TYPE_CHECKING:  # torch is imported where tensors are made: processes that prepare pairs need none, and start in no time
    from torch import Tensor

PAD = -1
BYTES = 256


@dataclass(frozen=True)
class Config:
    """The section `text_tokenizer` of params.yaml."""

    vocab_size: int = 16384  # BPE words, the 256 bytes among them (paper §2.2)
    text_length: int = 256  # tokens a caption may have; longer ones are cut and counted (paper §2.2)

    def __post_init__(self) -> None:
        if self.vocab_size < BYTES:
            raise ValueError(
                f"text_tokenizer.vocab_size is {self.vocab_size}; byte-level BPE needs {BYTES} or more"
            )
        if self.text_length < 1:
            raise ValueError(f"text_tokenizer.text_length is {self.text_length}; a caption needs 1 or more")


def normalise(caption: str) -> str:
    """The one form in which captions are trained on, drawn from and scored: NFC, lower-cased, single spaces."""
    return " ".join(unicodedata.normalize("NFC", caption.lower()).split())  # NFC last: lower() can undo it


class TextTokenizer:
    """Captions as tokens (B, T), and back."""

    def __init__(self, bpe: tokenizers.Tokenizer, text_length: int, fingerprint: str = "") -> None:
        self.bpe, self.text_length, self.fingerprint = bpe, text_length, fingerprint
        self.vocab_size = bpe.get_vocab_size()
        model = json.loads(bpe.to_str())["model"]
        self._ids: dict[str, int] = model["vocab"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}

    def words(self, caption: str) -> list[int]:
        """One caption's tokens, all of them."""
        return self.bpe.encode(normalise(caption)).ids

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B, T) int64, -1 where a caption has ended; one of more than T tokens is cut."""
        return padded([entry.ids for entry in self._encoded(captions)], self.text_length)

    def _encoded(self, captions: Sequence[str]) -> list[tokenizers.Encoding]:
        return self.bpe.encode_batch_fast([normalise(caption) for caption in captions])

    def words_with_dropout(self, caption: str, dropout: float, rng: np.random.Generator) -> list[int]:
        """One caption's tokens, each merge left out with probability `dropout` whenever it could be made; 0 gives `words`."""
        parts = [part for part, _ in self.bpe.pre_tokenizer.pre_tokenize_str(normalise(caption))]
        draws = _uniform(rng)
        return [self._ids[word] for part in parts for word in self._merged(part, dropout, draws)]

    def encode_with_dropout(
        self, captions: Sequence[str], dropout: float, rngs: Sequence[np.random.Generator]
    ) -> Tensor:
        """`encode` with BPE-dropout, one random generator for each caption: (B, T) int64."""
        drawn = [self.words_with_dropout(caption, dropout, rng) for caption, rng in zip(captions, rngs, strict=True)]
        return padded(drawn, self.text_length)

    def _merged(self, part: str, dropout: float, draws: Iterator[float]) -> list[str]:
        """Bytes -> words: the oldest merge that is not left out, again and again, until none is left (their algorithm 1)."""
        words = list(part)
        ranks = [self._ranks.get(pair) for pair in itertools.pairwise(words)]
        while True:
            best = place = None
            for at, rank in enumerate(ranks):
                if rank is None or (dropout and next(draws) < dropout):
                    continue
                if best is None or rank < best:
                    best, place = rank, at
            if place is None:
                return words
            words[place : place + 2] = [words[place] + words[place + 1]]
            around = slice(max(0, place - 1), place + 2)  # the merged word and its neighbours
            ranks[max(0, place - 1) : place + 2] = [self._ranks.get(pair) for pair in itertools.pairwise(words[around])]

    def decode(self, tokens: Tensor) -> str:
        """One row of tokens (T,) -> its text, pads left out."""
        return self.bpe.decode([token for token in tokens.tolist() if token != PAD]).removeprefix(" ")

    def count_cut(self, captions: Iterable[str]) -> int:
        """How many captions have more tokens than the model reads (in the usual spelling; with dropout they are longer)."""
        return sum(len(entry.ids) > self.text_length for part in _parts(captions, 1024) for entry in self._encoded(part))

    def told_cut(self, cut: int, count: int) -> str:
        """One sentence on captions that were cut: "3 of 2,000 captions have more than 24 tokens; …"."""
        return (
            f"{cut:,} of {count:,} captions have more than {self.text_length} tokens; the rest of each is not read. "
            "To read more, raise text_tokenizer.text_length or vocab_size"
        )


def padded(several: Sequence[list[int]], length: int) -> Tensor:
    """Each cut at the end, or filled with PAD: padded([[5, 9]], 4) -> [[5, 9, -1, -1]], (B, length) int64."""
    import torch

    # not as lists of Python's numbers: to make a tensor of those takes longer than the BPE
    rows = np.full((len(several), length), PAD, np.int64)
    for row, tokens in zip(rows, several, strict=True):
        row[: len(tokens)] = tokens[:length]
    return torch.from_numpy(rows)


def _parts(items: Iterable[str], length: int) -> Iterator[list[str]]:
    """_parts("abcde", 2) -> ["a", "b"], ["c", "d"], ["e"]; no more than one part is in memory."""
    left = iter(items)
    while part := list(itertools.islice(left, length)):
        yield part


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    """Its numbers in [0, 1), one after the other; drawn in blocks, which are the same numbers in a tenth of the time."""
    while True:
        yield from rng.random(64).tolist()


def train(captions: Iterable[str], config: Config) -> TextTokenizer:
    """Byte-level BPE of at most `config.vocab_size` words; the same captions in any order give the same words."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    # sorted: with ties in frequency the library's merges depend on the order in which words were first seen
    bpe.train_from_iterator(sorted(normalise(caption) for caption in captions), trainer)
    return TextTokenizer(bpe, config.text_length)


def save(tokenizer: TextTokenizer, folder: Path) -> str:
    """Writes tokenizer.json, config.json and the manifest; returns the fingerprint."""
    folder = Path(folder)
    write_bytes(folder / "tokenizer.json", tokenizer.bpe.to_str(pretty=True).encode())
    write_json(folder / "config.json", {"text_length": tokenizer.text_length})
    return write_manifest(folder, {"tokenizer.json": None, "config.json": None}, {})["sha256"]


def load(folder: Path, mend: str = "dvc repro train_text_tokenizer") -> TextTokenizer:
    """The tokenizer saved in `folder`, verified."""
    manifest = read_manifest(folder, mend=mend)
    bpe = tokenizers.Tokenizer.from_str((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((Path(folder) / "config.json").read_bytes())
    return TextTokenizer(bpe, config["text_length"], manifest["sha256"])
