"""Schedules as functions of the step."""

import pytest

from thousandwords.nn.schedules import cosine, halvings


def test_a_cosine_goes_from_start_to_end_and_stays():
    assert [cosine(step, 2.0, 0.0, 8) for step in (-1, 0, 4, 8, 99)] == pytest.approx([2, 2, 1, 0, 0])
    assert cosine(2, 0.0, 1.0, 8) == pytest.approx(0.14644661)
    assert cosine(0, 2.0, 0.5, 0) == 0.5  # of no steps


@pytest.mark.paper("generator: schedule")
def test_a_rate_is_halved_each_time_the_loss_has_not_fallen_for_patience_steps():
    assert halvings([], patience=2) == 0
    assert halvings([3, 2, 2, 2, 1], patience=2) == 1
    assert halvings([3, 2, 2, 2, 2, 2, 1], patience=2) == 2  # the count starts again after each
    assert halvings([3, 2, 2.5, 1.9, 2, 1.8], patience=2) == 0
    assert halvings([3, float("nan"), float("nan")], patience=2) == 1
