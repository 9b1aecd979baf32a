"""The benchmark of drawing runs, and its rows say what they are held against."""
from __future__ import annotations

import json

from bench import sampling


def test_the_benchmark_of_drawing_runs_and_leaves_its_rows(tmp_path, capsys):
    sampling.main(["--quick", "--out", str(tmp_path / "results.jsonl")])

    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert set(rows) == {"decode_vs_matmul", "best_of_n"}
    assert rows["decode_vs_matmul"]["ratio"] == rows["decode_vs_matmul"]["figure"] / rows["decode_vs_matmul"]["limit"]
    assert "| `best_of_n` | 8 candidates of one caption |" in capsys.readouterr().out
