"""The benchmarks run on tiny sizes and record their rows."""

import json
from pathlib import Path

from bench import _peer, growth, sampling, training
from bench import _results as results
from bench._results import Row
from thousandwords.planning import estimate


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_recorded_row_has_date_machine_versions_and_commit(tmp_path):
    row = Row("sample_vs_peer", "sampling", "batch 32", 120.0, "images/s", "peer", 4.0, 30.0)
    results.record([row], tmp_path / "results.jsonl")

    (recorded,) = read_rows(tmp_path / "results.jsonl")
    assert recorded["id"] == "sample_vs_peer" and recorded["figure"] == 120.0 and recorded["ratio"] == 30.0
    assert {"date", "machine", "versions", "revision", "unit", "against"} <= set(recorded)


def test_the_sampling_benchmark_runs_and_records_its_rows(tmp_path, capsys):
    sampling.main(["--quick", "--out", str(tmp_path / "results.jsonl")])

    rows = {row["id"]: row for row in read_rows(tmp_path / "results.jsonl")}
    assert set(rows) == {"decode_vs_matmul", "best_of_n"}
    decode = rows["decode_vs_matmul"]
    assert decode["ratio"] == decode["figure"] / decode["limit"]
    assert "| `best_of_n` | 8 candidates of one caption |" in capsys.readouterr().out


def test_the_training_benchmark_runs_and_the_cost_model_reads_its_rate(tmp_path, capsys):
    training.main(["--quick", "--threads", "1", "--out", str(tmp_path / "results.jsonl")])

    rows = read_rows(tmp_path / "results.jsonl")
    assert [row["id"] for row in rows] == ["cpu_matmul", "cpu_train", "train_vs_plain"]
    rate = estimate.benchmarked_rates(rows, "cpu")["flops"]
    assert rate.value == rows[0]["figure"] * 1e12 * rows[1]["ratio"]
    assert rate.source.startswith("benchmark of 20")
    assert "| `train_vs_plain` |" in capsys.readouterr().out


def test_the_memory_of_a_step_is_measured_in_its_own_process():
    assert growth.peak(32) > 1


def test_without_a_registry_the_peer_is_left_out_with_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(_peer, "ROOT", tmp_path)
    monkeypatch.setattr(_peer, "FOLDER", tmp_path / ".bench" / "peer")

    assert not _peer.install()

    message = capsys.readouterr().err
    assert message.startswith(
        "left out: everything against dalle-pytorch. pip could not install bench/peer.lock into .bench/peer: "
    )
    assert "dalle-pytorch" in message.splitlines()[0].rpartition(": ")[2]
    assert not (tmp_path / ".bench" / "peer" / "lock").exists()
