"""bench/growth.py: a slope is a slope, and what it measures can be measured."""
from __future__ import annotations

import pytest

from bench import growth


def test_an_exponent_is_the_slope_of_the_three_largest_sizes():
    assert growth.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    assert growth.exponent([1, 10, 100, 1000], [500.0, 7, 7, 7]) == pytest.approx(0.0, abs=1e-9)


def test_a_row_tells_the_exponent_and_what_theory_says():
    row = growth.row("growth_x", "time, things", [10, 100, 1000], [0.01, 0.1, 1.0], "s", 2.0, "pairs")
    assert row.figure == pytest.approx(1.0) and row.ratio == pytest.approx(0.5) and row.limit == 2.0
    assert row.size == "10 to 1,000: 0.01 to 1 s"


def test_what_is_measured_runs_on_few_things(monkeypatch):
    monkeypatch.setattr(growth, "timed", lambda works: [(work(), 1.0)[1] for work in works])
    rows = [*growth.by_candidates((1, 2)), *growth.by_batch((1, 2)), *growth.by_weights((64, 128)), *growth.by_rows((100, 200))]
    assert [row.id for row in rows] == ["growth_candidates", "growth_batch", "growth_weights", "growth_rows"]


def test_the_memory_of_a_step_is_measured_in_a_process_of_its_own():
    assert growth.peak(32) > 1
