"""The table of a benchmark and its alternating timings."""

from __future__ import annotations

from bench import _results as results

ROW = results.Row("sample_vs_peer", "sampling", "batch 32", 120.0, "images/s", "peer", 4.0, 30.0)


def test_the_table_has_figure_limit_and_ratio():
    assert results.table([ROW]).splitlines()[-1] == (
        "| `sample_vs_peer` | sampling | batch 32 | 120 images/s | peer: 4 images/s | 30 |"
    )


def test_functions_alternate_and_each_is_called_once_untimed():
    calls = []
    first, second = results.seconds(
        lambda: calls.append("a"), lambda: calls.append("b"), rounds=2, min_seconds=0
    )
    assert calls == ["a", "b", "a", "b", "a", "b"] and first >= 0 and second >= 0
