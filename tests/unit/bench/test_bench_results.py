"""The rows that benchmarks leave: one line a figure, the newest found again, one table."""
from __future__ import annotations

import json

from bench import _results as results

ROW = results.Row("sample_vs_peer", "sampling", "batch 32", 120.0, "images/s", "peer", 4.0, 30.0)


def test_a_recorded_row_says_when_on_what_and_of_which_commit(tmp_path):
    results.record([ROW], tmp_path / "results.jsonl")
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert told["id"] == "sample_vs_peer" and told["figure"] == 120.0 and told["ratio"] == 30.0
    assert {"date", "machine", "versions", "revision", "unit", "against"} <= set(told)


def test_the_table_has_figure_limit_and_ratio():
    assert results.table([ROW]).splitlines()[-1] == (
        "| `sample_vs_peer` | sampling | batch 32 | 120 images/s | peer: 4 images/s | 30 |"
    )


def test_works_alternate_and_each_is_called_once_untimed():
    called = []
    first, second = results.seconds(lambda: called.append("a"), lambda: called.append("b"), rounds=2, least=0)
    assert called == ["a", "b", "a", "b", "a", "b"] and first >= 0 and second >= 0
