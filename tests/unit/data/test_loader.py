"""A batch depends on its positions only; epochs go through all rows, by weight in a mixture, and their captions and views."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.images import encoded, noise, write
from tests.helpers.sources import folder_config
from tests.helpers.tiny_models import CAPTIONS, HEADER, shard_tokens, tiny_text, write_shards
from thousandwords.core.config import ConfigError, section
from thousandwords.data import sampler
from thousandwords.data.images import to_float
from thousandwords.data.loader import CaptionConfig, ImageLoader, TokenLoader
from thousandwords.data.pair_shards import PairReader
from thousandwords.data.sampler import Mixture, choose, epoch_rows, epochs_and_rows, positions, shares
from thousandwords.data.token_shards import TokenHeader, TokenRows, read_token_rows
from thousandwords.ingest.ingest import write_pairs
from thousandwords.text import bpe

SIZES = {"count": st.integers(1, 60), "batch_size": st.integers(1, 70), "seed": st.integers(0, 2**32)}


def rows_of(step: int, count: int, batch_size: int, seed: int) -> list[int]:
    return [row for _, row in epochs_and_rows(positions(step, batch_size), count, seed)]


def epochs(count: int, batch_size: int, seed: int, number: int) -> list[list[int]]:
    """The first epochs, cut out of the concatenated batches."""
    steps = -(-count * number // batch_size)
    rows = [row for step in range(steps) for row in rows_of(step, count, batch_size, seed)]
    return [rows[epoch * count : (epoch + 1) * count] for epoch in range(number)]


# --- rows ------------------------------------------------------------------------------------------------------------


@given(**SIZES)
def test_an_epoch_is_a_permutation(count, batch_size, seed):
    for epoch in epochs(count, batch_size, seed, 3):
        assert sorted(epoch) == list(range(count))


@given(**{**SIZES, "count": st.integers(20, 60)})
def test_epochs_and_seeds_have_different_orders(count, batch_size, seed):
    first, second = epochs(count, batch_size, seed, 2)
    assert first != second != epochs(count, batch_size, seed + 1, 1)[0] != first


def test_the_order_is_the_same_on_every_machine():
    assert rows_of(0, 10, 4, seed=0) == [8, 0, 7, 4]
    assert rows_of(2, 10, 4, seed=0) == [6, 3, 0, 7]  # the end of one epoch, the start of the next
    assert [epoch for epoch, _ in epochs_and_rows(range(8, 12), 10, seed=0)] == [0, 0, 1, 1]


# --- captions and views ------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 6), seed=st.integers(0, 2**32), row=st.integers(0, 1000), rounds=st.integers(0, 5)
)
def test_in_as_many_epochs_as_captions_each_caption_comes_once(count, seed, row, rounds):
    chosen = [choose(count, seed, 0, epoch, row) for epoch in range(rounds * count, (rounds + 1) * count)]
    assert sorted(chosen) == list(range(count))


def test_captions_and_views_are_combined_in_all_ways():
    uses = sampler.CAPTION, sampler.VIEW
    combinations = {tuple(choose(2, 0, use, epoch, 0) for use in uses) for epoch in range(20)}
    assert combinations == {(0, 0), (0, 1), (1, 0), (1, 1)}


# --- tokens ----------------------------------------------------------------------------------------------------------

TWO_VIEWS = replace(HEADER, views=2)
LOADERS = {"plain": (HEADER, {}), "views and dropout": (TWO_VIEWS, {"bpe_dropout": 0.3})}


def token_rows(folder, header: TokenHeader = HEADER) -> TokenRows:
    """10 rows of two captions each."""
    write_shards(folder, {"train": 10}, header)
    return read_token_rows(folder, "train")


def test_a_token_batch_has_a_caption_and_the_image_of_each_row(tmp_path):
    rows = token_rows(tmp_path)
    text_tokens, image_tokens = TokenLoader(rows, tiny_text(), seed=0).batch(range(0, 4))  # rows 8, 0, 7, 4
    assert text_tokens.shape == (4, 8) and text_tokens.dtype == torch.int64
    assert image_tokens.equal(shard_tokens(10)[[8, 0, 7, 4]]) and image_tokens.dtype == torch.int64
    for row, tokens in zip((8, 0, 7, 4), text_tokens, strict=True):
        assert any(tokens.equal(caption) for caption in tiny_text().encode(rows.captions[row]))


def test_two_epochs_have_both_captions_and_both_views_of_each_row(tmp_path):
    rows, text_tokenizer = token_rows(tmp_path, TWO_VIEWS), tiny_text()
    text_tokens, image_tokens = TokenLoader(rows, text_tokenizer, seed=1).batch(range(0, 20))
    encoded_captions = torch.cat([text_tokenizer.encode(captions) for captions in rows.captions])
    assert set(map(text_tokenizer.decode, text_tokens)) == set(map(text_tokenizer.decode, encoded_captions))
    views = {tuple(view.tolist()) for row in rows.tokens for view in row}
    assert {tuple(image.tolist()) for image in image_tokens} == views


@pytest.mark.parametrize("name", LOADERS)
def test_the_parts_of_a_batch_concatenated_are_the_batch(tmp_path, name):
    header, settings = LOADERS[name]
    rows = token_rows(tmp_path, header)
    first, second = (TokenLoader(rows, tiny_text(), seed=3, **settings) for _ in range(2))
    parts = [first.batch(range(4, 12)), first.batch(range(0, 4))]  # like another process, in another order
    for tensor, late, early in zip(second.batch(range(0, 12)), *parts, strict=True):
        assert tensor.equal(torch.cat([early, late]))


def test_dropout_splits_a_caption_anew_each_epoch_and_changes_no_image(tmp_path):
    rows = token_rows(tmp_path)
    rows = replace(rows, captions=[["a large red star left of a yellow square"]] * 10)
    text_tokenizer = bpe.train(CAPTIONS * 3, bpe.TextTokenizerConfig(400, 64))
    varied, images = TokenLoader(rows, text_tokenizer, seed=0, bpe_dropout=0.2).batch(range(0, 30))
    plain, same_images = TokenLoader(rows, text_tokenizer, seed=0).batch(range(0, 30))

    assert len({tuple(row.tolist()) for row in plain}) == 1
    assert len({tuple(row.tolist()) for row in varied}) > 10
    assert {text_tokenizer.decode(row) for row in varied} == {"a large red star left of a yellow square"}
    assert images.equal(same_images)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_of_merges_outside_0_to_1_is_rejected(share):
    with pytest.raises(ConfigError, match=rf"generator.bpe_dropout is {share}; it needs to be in \[0, 1\)"):
        section({"bpe_dropout": share}, "generator", CaptionConfig)


# --- images --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Pairs of 24 images of 20 × 30, each with two captions, stored as squares of 16 and whole."""
    own = tmp_path_factory.mktemp("own")
    for number in range(24):
        caption = f"Image {number}\nnumber {number}"
        write(own, {f"{number}.png": encoded(noise(20, 30, number)), f"{number}.txt": caption})
    folders = {keep: tmp_path_factory.mktemp(keep) for keep in ("square", "whole")}
    for keep, folder in folders.items():
        write_pairs(folder_config(own, validation_share=0.05, min_side=8, keep=keep), 0, folder)
    return folders


def test_a_batch_without_augmentation_has_the_center_squares_of_its_rows(folders):
    for folder in folders.values():
        reader = PairReader(folder, "train")
        batch = ImageLoader(reader, seed=5).batch(range(3, 9))
        rows = [row for _, row in epochs_and_rows(range(3, 9), len(reader), 5)]
        assert batch.dtype == torch.float32 and batch.equal(to_float(reader.images(rows)))


def test_random_crops_have_the_same_size_and_differ_in_each_epoch(folders):
    reader = PairReader(folders["whole"], "train")
    batch = ImageLoader(reader, seed=5, augmentation="paper").batch(range(len(reader) * 2))
    assert batch.shape == (len(reader) * 2, 3, 16, 16) and batch.dtype == torch.float32
    assert 0 <= batch.min() and batch.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in batch}) == len(reader) * 2


@pytest.mark.parametrize("augmentation", ["none", "paper"])
def test_the_parts_of_an_image_batch_concatenated_are_the_batch(folders, augmentation):
    loader, other = (ImageLoader(PairReader(folders["whole"], "train"), 0, augmentation) for _ in range(2))
    late, early = other.batch(range(20, 30)), other.batch(range(16, 20))
    assert loader.batch(range(16, 30)).equal(torch.cat([early, late]))
    assert loader.captions(range(16, 30)) == other.captions(range(16, 20)) + other.captions(range(20, 30))


def test_captions_belong_to_their_images_and_take_turns(folders):
    reader = PairReader(folders["square"], "train")
    loader, count = ImageLoader(reader, seed=2), len(reader)
    captions = loader.captions(range(2 * count))
    for (_, row), caption in zip(epochs_and_rows(range(2 * count), count, 2), captions, strict=True):
        assert caption in reader.captions(row)
    assert sorted(captions) == sorted(caption for row in range(count) for caption in reader.captions(row))


# --- mixtures of sources ---------------------------------------------------------------------------------------------

EQUAL = Mixture((90, 10), (1.0, 1.0))


@pytest.mark.parametrize(
    ("count", "weights", "expected"),
    [(10, [1, 1], [5, 5]), (10, [1, 2], [3, 7]), (10, [1, 1, 1], [4, 3, 3]), (7, [0.5, 0.25, 0.25], [3, 2, 2]),
     (3, [1e-9, 1], [0, 3])],
)  # fmt: skip
def test_positions_are_shared_out_by_weight(count, weights, expected):
    assert shares(count, weights) == expected


def stream_of(mixture: Mixture, seed: int, epochs: int) -> list[tuple[int, int]]:
    """(round, row) at each position of the first epochs."""
    parts = [np.stack(epoch_rows(mixture, seed, epoch), axis=1) for epoch in range(epochs)]
    return list(map(tuple, np.concatenate(parts).tolist()))


def test_the_round_of_a_row_counts_its_earlier_positions():
    stream = stream_of(EQUAL, 0, 3)
    assert sorted(round for round, row in stream if row == 95) == list(range(15))
    assert len(set(stream)) == 300


@given(st.lists(st.integers(0, 999), min_size=1).filter(any), st.integers(0, 99))
def test_weights_equal_to_the_rows_give_each_row_once_per_epoch(rows, epoch):
    rounds, of_epoch = epoch_rows(Mixture(tuple(rows), tuple(rows)), seed=0, epoch=epoch)
    assert sorted(of_epoch) == list(range(sum(rows))) and set(rounds) == {epoch}


def test_the_order_depends_only_on_seed_and_epoch_and_mixes_the_sources():
    first = epoch_rows(EQUAL, 0, 0)[1]
    assert (first == epoch_rows(EQUAL, 0, 0)[1]).all()
    assert (first != epoch_rows(EQUAL, 1, 0)[1]).any() and (first != epoch_rows(EQUAL, 0, 1)[1]).any()
    assert 10 < (first[:50] >= 90).sum() < 40


def test_the_stream_of_positions_crosses_epochs_and_can_start_anywhere():
    expected = stream_of(EQUAL, 4, 3)
    assert epochs_and_rows(range(250), 100, 4, EQUAL) == expected[:250]
    assert epochs_and_rows(range(130, 260), 100, 4, EQUAL) == expected[130:260]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any),
    st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    st.integers(0, 5),
)
def test_for_any_weights_an_epoch_is_full_and_rows_of_a_source_come_equally_often(rows, weights, epoch):
    mixture = Mixture(tuple(rows), tuple(weights[: len(rows)]))
    times = Counter(row for number in range(epoch + 1) for row in epoch_rows(mixture, 0, number)[1].tolist())
    assert sum(times.values()) == sum(rows) * (epoch + 1)
    for start, count in zip(np.cumsum([0, *rows]), rows, strict=False):
        of_source = [times[row] for row in range(start, start + count)]
        assert not of_source or max(of_source) - min(of_source) <= 1
