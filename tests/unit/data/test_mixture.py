"""Weights say how often training sees a source, exactly, and leave no row of it behind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandwords.loader import places
from thousandwords.mixing import Mixing, epoch_places, shares

EQUAL = Mixing((90, 10), (1.0, 1.0))


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


def test_a_small_source_of_equal_weight_is_shown_as_often_as_a_large_one():
    rounds, rows = epoch_places(EQUAL, 0, 0)
    assert rows.shape == rounds.shape == (100,) and Counter((rows >= 90).tolist()) == {False: 50, True: 50}
    assert Counter(Counter(rows[rows >= 90].tolist()).values()) == {5: 10}  # each of its ten rows five times


def test_the_same_row_is_of_another_round_each_time():
    places = [(int(one), int(row)) for epoch in range(3) for one, row in zip(*epoch_places(EQUAL, 0, epoch), strict=True)]
    assert sorted(place for place in places if place[1] == 95) == [(one, 95) for one in range(15)]
    assert len(set(places)) == 300


def test_weights_in_proportion_to_the_rows_show_every_row_once_an_epoch():
    rounds, rows = epoch_places(Mixing((90, 10), (9, 1)), 3, 7)
    assert sorted(rows.tolist()) == list(range(100)) and set(rounds.tolist()) == {7}


def test_a_source_goes_on_where_the_last_epoch_left_it():
    seen = [int(row) for epoch in range(9) for row in epoch_places(EQUAL, 0, epoch)[1] if row < 90]
    assert len(seen) == 450 and set(Counter(seen).values()) == {5}


def test_the_order_depends_on_the_seed_and_the_epoch_alone_and_mixes_the_sources():
    first = epoch_places(EQUAL, 0, 0)[1]
    assert (first == epoch_places(EQUAL, 0, 0)[1]).all()
    assert (first != epoch_places(EQUAL, 1, 0)[1]).any() and (first != epoch_places(EQUAL, 0, 1)[1]).any()
    assert 10 < (first[:50] >= 90).sum() < 40


def test_the_stream_of_positions_goes_on_from_epoch_to_epoch_and_can_be_had_from_anywhere():
    stream = places(range(250), 100, 4, EQUAL)
    laid_out = [(int(one), int(row)) for epoch in range(3) for one, row in zip(*epoch_places(EQUAL, 4, epoch), strict=True)]
    assert stream == laid_out[:250]
    assert places(range(130, 260), 100, 4, EQUAL) == laid_out[130:260]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any),
    st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    st.integers(0, 5),
)
def test_whatever_the_weights_an_epoch_is_full_and_no_row_runs_ahead(rows, weights, epoch):
    mixing = Mixing(tuple(rows), tuple(weights[: len(rows)]))
    shown = Counter(int(row) for number in range(epoch + 1) for row in epoch_places(mixing, 0, number)[1])
    assert sum(shown.values()) == sum(rows) * (epoch + 1)
    for start, count in zip(np.cumsum([0, *rows]), rows, strict=False):
        times = [shown[row] for row in range(start, start + count)]
        assert not times or max(times) - min(times) <= 1
