"""Every batch follows from its positions alone: all rows in turn, and of each row its captions and views in turn."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import shard_tokens, tiny_text, write_shards
from thousandwords.loader import TokenLoader, places, positions
from thousandwords.shards import read_token_rows

SIZES = {"count": st.integers(1, 60), "batch_size": st.integers(1, 70), "seed": st.integers(0, 2**32)}


def rows_of(step: int, count: int, batch_size: int, seed: int) -> list[int]:
    return [row for _, row in places(positions(step, batch_size), count, seed)]


def epochs(count: int, batch_size: int, seed: int, number: int) -> list[list[int]]:
    """The first epochs, cut out of the batches laid end to end."""
    steps = -(-count * number // batch_size)
    rows = [row for step in range(steps) for row in rows_of(step, count, batch_size, seed)]
    return [rows[epoch * count : (epoch + 1) * count] for epoch in range(number)]


# --- rows ------------------------------------------------------------------------------------------------------------


@given(**SIZES)
def test_an_epoch_is_a_permutation(count, batch_size, seed):
    for epoch in epochs(count, batch_size, seed, 3):
        assert sorted(epoch) == list(range(count))


@given(**SIZES, steps=st.lists(st.integers(0, 1000), min_size=1, max_size=5))
def test_every_batch_is_full_and_can_be_had_without_the_others(count, batch_size, seed, steps):
    forwards = [rows_of(step, count, batch_size, seed) for step in steps]
    backwards = [rows_of(step, count, batch_size, seed) for step in reversed(steps)]

    assert forwards == backwards[::-1]
    assert all(len(batch) == batch_size for batch in forwards)


@given(**{**SIZES, "count": st.integers(20, 60)})
def test_epochs_and_seeds_have_orders_of_their_own(count, batch_size, seed):
    first, second = epochs(count, batch_size, seed, 2)
    assert first != second != epochs(count, batch_size, seed + 1, 1)[0] != first


@given(count=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_the_size_of_a_batch_does_not_change_the_order(count, seed):
    assert epochs(count, 1, seed, 2) == epochs(count, 7, seed, 2) == epochs(count, 100, seed, 2)


def test_the_order_is_the_same_on_every_machine():
    assert rows_of(0, 10, 4, seed=0) == [8, 0, 7, 4]
    assert rows_of(2, 10, 4, seed=0) == [6, 3, 0, 7]  # the end of one epoch, the start of the next
    assert [epoch for epoch, _ in places(range(8, 12), 10, seed=0)] == [0, 0, 1, 1]


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    """10 rows of two captions and one view."""
    write_shards(tmp_path, {"train": 10})
    return read_token_rows(tmp_path, "train")


def test_a_batch_of_words_is_a_caption_and_a_view_of_each_row(rows):
    text_tokens, image_tokens = TokenLoader(rows, tiny_text(), seed=0).batch(range(0, 4))  # rows 8, 0, 7, 4

    assert text_tokens.shape == (4, 8) and text_tokens.dtype == torch.int64
    assert image_tokens.equal(shard_tokens(10)[[8, 0, 7, 4]]) and image_tokens.dtype == torch.int64
    shown = [rows.captions[row] for row in (8, 0, 7, 4)]
    for caption, words in zip(shown, text_tokens, strict=True):
        assert any(words.equal(tiny_text().encode([one])[0]) for one in caption)


def test_parts_of_a_batch_laid_together_are_the_batch(rows):
    loader = TokenLoader(rows, tiny_text(), seed=3)
    whole, parts = loader.batch(range(0, 8)), [loader.batch(range(0, 4)), loader.batch(range(4, 8))]
    for tensor, *pieces in zip(whole, *parts, strict=True):
        assert tensor.equal(torch.cat(pieces))
