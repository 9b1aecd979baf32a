"""Every batch follows from its positions alone: all rows in turn, and of each row its captions and views in turn."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import CAPTIONS, HEADER, shard_tokens, tiny_text, write_shards
from thousandwords import pairs, text
from thousandwords.config import ConfigError, section
from thousandwords.images import encode_png, to_float
from thousandwords.loader import (
    CAPTION,
    VIEW,
    CaptionSettings,
    ImageLoader,
    PictureSettings,
    TokenLoader,
    choose,
    places,
    positions,
)
from thousandwords.pair_shards import PairReader
from thousandwords.pairs import write_pairs
from thousandwords.shards import TokenHeader, TokenRows, read_token_rows

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


# --- what of each row ------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 6), seed=st.integers(0, 2**32), row=st.integers(0, 1000), rounds=st.integers(0, 5))
def test_in_as_many_epochs_as_there_are_captions_each_is_shown_once(count, seed, row, rounds):
    shown = [choose(count, seed, 0, epoch, row) for epoch in range(rounds * count, (rounds + 1) * count)]
    assert sorted(shown) == list(range(count))


def test_rows_rounds_and_purposes_have_orders_of_their_own():
    def order(purpose: int, row: int, start: int) -> tuple[int, ...]:
        return tuple(choose(4, 0, purpose, epoch, row) for epoch in range(start, start + 4))

    assert len({order(purpose, row, start) for purpose in (0, 1) for row in range(10) for start in (0, 4)}) > 15


def test_captions_and_views_meet_in_all_pairs():
    met = {(choose(2, 0, CAPTION, epoch, row), choose(2, 0, VIEW, epoch, row)) for epoch in range(20) for row in (0,)}
    assert met == {(0, 0), (0, 1), (1, 0), (1, 1)}


# --- words -----------------------------------------------------------------------------------------------------------

TWO_VIEWS = replace(HEADER, views=2)
LOADERS = {
    "plain": (HEADER, {}),
    "views and dropout": (TWO_VIEWS, {"bpe_dropout": 0.3}),
}


def token_rows(folder, header: TokenHeader = HEADER) -> TokenRows:
    """10 rows of two captions each."""
    write_shards(folder, {"train": 10}, header)
    return read_token_rows(folder, "train")


def test_a_batch_of_words_is_a_caption_of_each_row_and_its_picture(tmp_path):
    rows = token_rows(tmp_path)
    text_tokens, image_tokens = TokenLoader(rows, tiny_text(), seed=0).batch(range(0, 4))  # rows 8, 0, 7, 4

    assert text_tokens.shape == (4, 8) and text_tokens.dtype == torch.int64
    assert image_tokens.equal(shard_tokens(10)[[8, 0, 7, 4]]) and image_tokens.dtype == torch.int64
    for row, words in zip((8, 0, 7, 4), text_tokens, strict=True):
        assert any(words.equal(one) for one in tiny_text().encode(rows.captions[row]))


def test_rows_of_one_caption_give_what_they_gave_before_there_were_draws(tmp_path):
    rows = token_rows(tmp_path)
    single = replace(rows, captions=[captions[:1] for captions in rows.captions])
    text_tokens, image_tokens = TokenLoader(single, tiny_text(), seed=0).batch(range(8, 12))

    first_captions, tokens = rows.batch([6, 3, 0, 7])
    assert text_tokens.equal(tiny_text().encode(first_captions)) and image_tokens.equal(tokens)


def test_over_two_epochs_each_row_shows_both_captions_and_both_views(tmp_path):
    rows, words = token_rows(tmp_path, TWO_VIEWS), tiny_text()
    text_tokens, image_tokens = TokenLoader(rows, words, seed=1).batch(range(0, 20))

    shown = {(words.decode(text), tuple(image.tolist())) for text, image in zip(text_tokens, image_tokens, strict=True)}
    spelt = {words.decode(row) for captions in rows.captions for row in words.encode(captions)}
    assert {text for text, _ in shown} == spelt
    assert {image for _, image in shown} == {tuple(view.tolist()) for row in rows.tokens for view in row}


@pytest.mark.parametrize("name", LOADERS)
def test_parts_of_a_batch_laid_together_are_the_batch(tmp_path, name):
    header, settings = LOADERS[name]
    rows = token_rows(tmp_path, header)
    first, second = (TokenLoader(rows, tiny_text(), seed=3, **settings) for _ in range(2))
    parts = [first.batch(range(4, 12)), first.batch(range(0, 4))]  # as another process would, in another order
    for tensor, late, early in zip(second.batch(range(0, 12)), *parts, strict=True):
        assert tensor.equal(torch.cat([early, late]))


def test_dropout_spells_a_caption_anew_each_epoch_and_changes_no_picture(tmp_path):
    rows = token_rows(tmp_path)
    rows = replace(rows, captions=[["a large red star left of a yellow square"]] * 10)
    words = text.train(CAPTIONS * 3, text.Config(400, 64))
    spelt, pictures = TokenLoader(rows, words, seed=0, bpe_dropout=0.2).batch(range(0, 30))
    plain, same_pictures = TokenLoader(rows, words, seed=0).batch(range(0, 30))

    assert len({tuple(row.tolist()) for row in plain}) == 1 and len({tuple(row.tolist()) for row in spelt}) > 10
    assert {words.decode(row) for row in spelt} == {"a large red star left of a yellow square"}
    assert pictures.equal(same_pictures)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_of_merges_outside_0_to_1_is_refused(share):
    assert section({"bpe_dropout": 0.1}, "generator", CaptionSettings).bpe_dropout == 0.1
    with pytest.raises(ConfigError) as caught:
        section({"bpe_dropout": share}, "generator", CaptionSettings)
    assert str(caught.value) == f"params.yaml: generator.bpe_dropout is {share}; it needs to be in [0, 1)"


def test_all_is_off_where_nothing_is_said():
    assert CaptionSettings() == CaptionSettings(bpe_dropout=0.0) and PictureSettings() == PictureSettings("none")


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Pairs of 24 pictures of 20 × 30, each with two captions, kept as squares of 16 and whole."""
    own = tmp_path_factory.mktemp("own")
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        (own / f"{number}.png").write_bytes(encode_png(pixels))
        (own / f"{number}.txt").write_text(f"Picture {number}\nnumber {number}")
    found = {}
    for keep in ("square", "whole"):
        found[keep] = tmp_path_factory.mktemp(keep)
        write_pairs(pairs.Config(source="folder", path=str(own), image_size=16, min_side=8, keep=keep), 0, found[keep])
    return found


def test_a_plain_batch_is_the_squares_of_its_rows(folders):
    for folder in folders.values():
        reader = PairReader(folder, "train")
        batch = ImageLoader(reader, seed=5).batch(range(3, 9))
        rows = [row for _, row in places(range(3, 9), len(reader), 5)]
        assert batch.dtype == torch.float32 and batch.equal(to_float(reader.images(rows)))


def test_random_crops_are_pictures_of_the_same_size_anew_each_epoch(folders):
    reader = PairReader(folders["whole"], "train")
    batch = ImageLoader(reader, seed=5, augmentation="paper").batch(range(len(reader) * 2))

    assert batch.shape == (len(reader) * 2, 3, 16, 16) and batch.dtype == torch.float32
    assert 0 <= batch.min() and batch.max() <= 1
    assert len({tuple(picture.flatten().tolist()) for picture in batch}) == len(reader) * 2


@pytest.mark.parametrize("augmentation", ["none", "paper"])
def test_parts_of_a_batch_of_pictures_laid_together_are_the_batch(folders, augmentation):
    loader, other = (ImageLoader(PairReader(folders["whole"], "train"), 0, augmentation) for _ in range(2))
    late, early = other.batch(range(20, 30)), other.batch(range(16, 20))
    assert loader.batch(range(16, 30)).equal(torch.cat([early, late]))
    assert loader.captions(range(16, 30)) == other.captions(range(16, 20)) + other.captions(range(20, 30))


def test_captions_go_with_their_pictures_and_take_turns(folders):
    reader = PairReader(folders["square"], "train")
    loader, count = ImageLoader(reader, seed=2), len(reader)
    shown = loader.captions(range(2 * count))

    for (_, row), caption in zip(places(range(2 * count), count, 2), shown, strict=True):
        assert caption in reader.captions(row)
    assert sorted(shown) == sorted(caption for row in range(count) for caption in reader.captions(row))
