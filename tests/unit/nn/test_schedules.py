"""Schedules as functions of the step."""

from __future__ import annotations

import pytest

from thousandwords.schedules import cosine, halvings


def test_a_cosine_goes_from_start_to_end_and_stays():
    assert [cosine(step, 2.0, 0.0, 8) for step in (-1, 0, 4, 8, 99)] == pytest.approx([2, 2, 1, 0, 0])
    assert cosine(2, 0.0, 1.0, 8) == pytest.approx(0.14644661)


def test_a_cosine_of_no_steps_is_at_its_end():
    assert cosine(0, 2.0, 0.5, 0) == 0.5


def test_a_rate_is_halved_each_time_the_loss_has_not_fallen_for_so_long():
    assert halvings([], patience=2) == 0
    assert halvings([3, 2, 2, 2, 1], patience=2) == 1
    assert halvings([3, 2, 2, 2, 2, 2, 1], patience=2) == 2  # it waits anew after each
    assert halvings([3, 2, 2.5, 1.9, 2, 1.8], patience=2) == 0


def test_a_gain_too_small_counts_as_none():
    assert halvings([3, 2.99, 2.98, 2.97], patience=3, least_gain=0.1) == 1
    assert halvings([3, 2.99, 2.98, 2.97], patience=3) == 0


def test_a_loss_that_is_no_number_is_no_gain():
    assert halvings([3, float("nan"), float("nan")], patience=2) == 1
