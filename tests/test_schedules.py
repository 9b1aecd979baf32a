"""Schedules as functions of the step."""

from __future__ import annotations

import pytest

from thousandwords.schedules import cosine


def test_a_cosine_goes_from_start_to_end_and_stays():
    assert [cosine(step, 2.0, 0.0, 8) for step in (-1, 0, 4, 8, 99)] == pytest.approx([2, 2, 1, 0, 0])
    assert cosine(2, 0.0, 1.0, 8) == pytest.approx(0.14644661)


def test_a_cosine_of_no_steps_is_at_its_end():
    assert cosine(0, 2.0, 0.5, 0) == 0.5
