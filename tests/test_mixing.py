"""Weights say how often training sees a source, exactly, and leave no row of it behind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thousandwords.mixing import epoch_rows, shares

SOURCES = np.array([0] * 90 + [1] * 10)


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
    rows = epoch_rows(SOURCES, [1.0, 1.0], 0, 0)
    assert rows.shape == (100,) and Counter(SOURCES[rows]) == {0: 50, 1: 50}
    assert Counter(Counter(rows[SOURCES[rows] == 1]).values()) == {5: 10}  # each of its ten rows five times


def test_weights_in_proportion_to_the_rows_show_every_row_once():
    assert sorted(epoch_rows(SOURCES, [9, 1], 3, 7)) == list(range(100))


def test_a_source_goes_on_where_the_last_epoch_left_it():
    seen = [row for epoch in range(9) for row in epoch_rows(SOURCES, [1, 1], 0, epoch) if SOURCES[row] == 0]
    assert len(seen) == 450 and set(Counter(seen).values()) == {5}


def test_the_order_depends_on_the_seed_and_the_epoch_alone_and_mixes_the_sources():
    first = epoch_rows(SOURCES, [1, 1], 0, 0)
    assert (first == epoch_rows(SOURCES, [1, 1], 0, 0)).all()
    assert (first != epoch_rows(SOURCES, [1, 1], 1, 0)).any() and (first != epoch_rows(SOURCES, [1, 1], 0, 1)).any()
    assert 10 < SOURCES[first][:50].sum() < 40


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    st.integers(0, 5),
)
def test_whatever_the_weights_an_epoch_is_full_and_no_row_runs_ahead(sources, weights, epoch):
    sources = np.array(sources)
    shown = Counter(row for number in range(epoch + 1) for row in epoch_rows(sources, weights, 0, number))
    assert sum(shown.values()) == len(sources) * (epoch + 1)
    for source in set(sources):
        times = [shown[row] for row in np.flatnonzero(sources == source)]
        assert max(times) - min(times) <= 1
