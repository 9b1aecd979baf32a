"""bench/growth.py: exponents, and every figure on small sizes."""

import pytest

from bench import growth


def test_an_exponent_is_the_slope_of_the_three_largest_sizes():
    assert growth.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    assert growth.exponent([1, 10, 100, 1000], [500.0, 7, 7, 7]) == pytest.approx(0.0, abs=1e-9)


def test_a_row_has_the_exponent_and_that_of_theory():
    row = growth.row("growth_x", "time, things", [10, 100, 1000], [0.01, 0.1, 1.0], "s", 2.0, "pairs")
    assert row.figure == pytest.approx(1.0) and row.ratio == pytest.approx(0.5) and row.limit == 2.0
    assert row.size == "10 to 1,000: 0.01 to 1 s"


def test_every_figure_is_measured_on_small_sizes(monkeypatch):
    monkeypatch.setattr(growth, "timed", lambda functions: [(function(), 1.0)[1] for function in functions])
    rows = [
        *growth.by_candidates((1, 2)),
        *growth.by_batch((1, 2)),
        *growth.by_weights((64, 128)),
        *growth.by_rows((100, 200)),
    ]
    assert [row.id for row in rows] == ["growth_candidates", "growth_batch", "growth_weights", "growth_rows"]
