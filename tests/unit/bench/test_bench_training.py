"""The benchmark of a training step runs, and leaves the rows that make plan reads."""
from __future__ import annotations

import json

from bench import training
from thousandwords import plan


def test_the_benchmark_of_training_runs_and_the_plan_finds_its_rate(tmp_path, capsys):
    training.main(["--quick", "--threads", "1", "--out", str(tmp_path / "results.jsonl")])

    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["cpu_matmul", "cpu_train", "train_vs_plain"]
    rate = plan.benchmarked_rate(rows, "cpu")
    assert rate.value == rows[0]["figure"] * 1e12 * rows[1]["ratio"] and rate.source.startswith("benchmark of 20")
    assert "| `train_vs_plain` |" in capsys.readouterr().out
