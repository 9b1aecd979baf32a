"""Which rows training sees, and what of each: the endless stream of positions 0, 1, 2, …, and the batches cut out of it.

Position p stands for one row of epoch p // count; each epoch is a seeded permutation of all rows. What a position shows (which
of the row's captions, which view or crop) follows from (seed, epoch, row) alone, so a batch is a pure function of its
positions: it can be had without the ones before it, and several processes may each take a part of one global batch.
"""
from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from thousandwords.augmentation import Augmentation, tokenizer_crop
from thousandwords.images import to_float
from thousandwords.mixing import Mixing, epoch_places
from thousandwords.pair_shards import PairReader
from thousandwords.shards import AnyTokenRows
from thousandwords.text import TextTokenizer

CAPTION, VIEW, CROP, DROPOUT = range(4)  # what is drawn for a position; each has random numbers of its own
AHEAD = 2  # batches that each thread may be ahead
_ONE_AT_A_TIME = threading.Lock()  # threads that come to a new epoch together make its order once, not once each


Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """`batch_of(step)`, the next steps' batches being made by threads meanwhile; without threads, just `batch_of(step)`.

    Usage: with Ahead(batch_of, steps, workers) as batches: batches(0), batches(1), …
    A batch is a function of its step, so it is the same whoever makes it, and steps may be asked for from any one on. An error is
    raised where its batch is asked for, not before. No batch from `steps` on is made unasked; leaving waits for those at work.
    """

    def __init__(self, batch_of: Callable[[int], Batch], steps: int, workers: int) -> None:
        self.batch_of, self.steps, self.workers = batch_of, steps, workers
        self._pending: dict[int, Future[Batch]] = {}
        self._threads = ThreadPoolExecutor(workers, "loader") if workers else None

    def __call__(self, step: int) -> Batch:
        if self._threads is None:
            return self.batch_of(step)
        wanted = range(step, max(step + 1, min(step + 1 + AHEAD * self.workers, self.steps)))
        for late in set(self._pending) - set(wanted):
            self._pending.pop(late).cancel()
        for one in wanted:
            if one not in self._pending:
                self._pending[one] = self._threads.submit(self.batch_of, one)
        return self._pending.pop(step).result()

    def __enter__(self) -> Ahead[Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def positions(step: int, batch_size: int) -> range:
    """The positions of global batch `step`: positions(2, 4) -> range(8, 12)"""
    return range(step * batch_size, (step + 1) * batch_size)


def places(positions: range, count: int, seed: int, mixing: Mixing | None = None) -> list[tuple[int, int]]:
    """(epoch, row) of each position, of `count` rows.

    The batches, laid end to end, go through one seeded permutation of all rows after the other; a batch may hold the end of
    one epoch and the start of the next, so that no row is ever left out. With a `mixing` each source is gone through so, at
    the pace that its weight gives it, and for the epoch stands how often the row was shown before.
    """
    if mixing is not None:
        return [_mixed_place(mixing, seed, *divmod(position, count)) for position in positions]
    return [
        (position // count, int(_permutation(count, seed, position // count)[position % count]))
        for position in positions
    ]


def _mixed_place(mixing: Mixing, seed: int, epoch: int, at: int) -> tuple[int, int]:
    with _ONE_AT_A_TIME:
        rounds, rows = _kept_mixture(mixing, seed, epoch)
    return int(rounds[at]), int(rows[at])


_kept_mixture = functools.lru_cache(maxsize=4)(epoch_places)


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    with _ONE_AT_A_TIME:
        return _kept_permutation(count, seed, epoch)


@functools.lru_cache(maxsize=4)
def _kept_permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch, count]).permutation(count)
    return order.astype(np.uint32) if count <= 2**32 else order  # half the memory, while several epochs are kept


def choose(count: int, seed: int, purpose: int, epoch: int, row: int) -> int:
    """Which of a row's `count` captions or views this epoch shows: in any `count` epochs from a multiple of it, each once.

    Not an independent draw, which would show some captions twice before others once; and shuffled anew in each round, so
    that no caption is tied to one view.
    """
    if count == 1:
        return 0
    order = np.random.default_rng([seed, purpose, row, epoch // count]).permutation(count)
    return int(order[epoch % count])


@dataclass(frozen=True)
class PictureSettings:
    """What the section `image_tokenizer` of params.yaml says of its pictures."""

    augmentation: Augmentation = "none"  # none: the plain square; paper: random crops, turned or not (listing 1)


@dataclass(frozen=True)
class CaptionSettings:
    """What the section `generator` of params.yaml says of its captions."""

    bpe_dropout: float = 0.0  # share of merges left out in training; the paper's is 0.1 (arXiv 1910.13267)

    def __post_init__(self) -> None:
        if not 0 <= self.bpe_dropout < 1:
            raise ValueError(f"generator.bpe_dropout is {self.bpe_dropout}; it needs to be in [0, 1)")


class TokenLoader:
    """Batches of (text, image tokens) for the generator, one caption and one view of each row per epoch."""

    def __init__(self, rows: AnyTokenRows, words: TextTokenizer, seed: int, bpe_dropout: float = 0.0) -> None:
        self.rows, self.words, self.seed, self.bpe_dropout = rows, words, seed, bpe_dropout

    def batch(self, positions: range) -> tuple[Tensor, Tensor]:
        """(text (B, T) int64 with −1 where a caption has ended, image tokens (B, L) int64)."""
        shown = places(positions, len(self.rows), self.seed, self.rows.mixing)
        self.rows.expect([row for _, row in shown])
        captions = [_caption(self.rows.captions_of(row), self.seed, epoch, row) for epoch, row in shown]
        views = [choose(self.rows.header.views, self.seed, VIEW, epoch, row) for epoch, row in shown]
        tokens = self.rows.tokens_of([row for _, row in shown], views).astype(np.int64)
        return self._encode(captions, shown), torch.from_numpy(tokens)

    def _encode(self, captions: list[str], shown: list[tuple[int, int]]) -> Tensor:
        if not self.bpe_dropout:
            return self.words.encode(captions)
        rngs = [np.random.default_rng([self.seed, DROPOUT, row, epoch]) for epoch, row in shown]
        return self.words.encode_with_dropout(captions, self.bpe_dropout, rngs)


class ImageLoader:
    """Batches of pictures, plain squares or random crops, for the image tokenizer; and their captions, for the scorer."""

    def __init__(self, reader: PairReader, seed: int, augmentation: Augmentation = "none") -> None:
        self.reader, self.seed, self.augmentation = reader, seed, augmentation

    def batch(self, positions: range) -> Tensor:
        """Pictures (B, 3, H, W) float32 in [0, 1]."""
        shown = places(positions, len(self.reader), self.seed, self.reader.mixing)
        if self.augmentation == "paper":
            return to_float(self._crops(shown))
        return to_float(self.reader.images([row for _, row in shown]))

    def _crops(self, shown: list[tuple[int, int]]) -> np.ndarray:
        size, pictures = self.reader.image_size, self.reader.pictures([row for _, row in shown])
        rngs = [np.random.default_rng([self.seed, CROP, row, epoch]) for epoch, row in shown]
        return np.stack([tokenizer_crop(picture, size, rng) for picture, rng in zip(pictures, rngs, strict=True)])

    def captions(self, positions: range) -> list[str]:
        """One caption, as it was given, of each of the pictures at these positions."""
        shown = places(positions, len(self.reader), self.seed, self.reader.mixing)
        return [_caption(self.reader.captions(row), self.seed, epoch, row) for epoch, row in shown]


def _caption(captions: Sequence[str], seed: int, epoch: int, row: int) -> str:
    return captions[choose(len(captions), seed, CAPTION, epoch, row)]
