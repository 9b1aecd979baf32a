"""Weights set exactly how often training uses each source, and no row is left out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandwords.data.sampler import Mixture, epoch_rows, epochs_and_rows, shares

EQUAL = Mixture((90, 10), (1.0, 1.0))


@pytest.mark.parametrize(
    ("count", "weights", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 2], [3, 7]),
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [0.5, 0.25, 0.25], [3, 2, 2]),
        (3, [1e-9, 1], [0, 3]),
    ],
)
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


def test_weights_proportional_to_the_rows_give_each_row_once_per_epoch():
    rounds, rows = epoch_rows(Mixture((90, 10), (9, 1)), 3, 7)
    assert sorted(rows.tolist()) == list(range(100)) and set(rounds.tolist()) == {7}


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
    times = Counter(int(row) for number in range(epoch + 1) for row in epoch_rows(mixture, 0, number)[1])
    assert sum(times.values()) == sum(rows) * (epoch + 1)
    for start, count in zip(np.cumsum([0, *rows]), rows, strict=False):
        of_source = [times[row] for row in range(start, start + count)]
        assert not of_source or max(of_source) - min(of_source) <= 1
