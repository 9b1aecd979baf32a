"""The benchmarks run on tiny sizes and record their rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bench import _peer, decoders, growth, sampling, tokenizers, training
from bench import _results as results
from bench._results import Row
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.planning import estimate
from thousandwords.scenes.render import parse_caption, render


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_recorded_row_has_date_machine_versions_and_commit(tmp_path):
    row = Row("sample_vs_peer", "sampling", "batch 32", 120.0, "images/s", "peer", 4.0)
    results.record([row], tmp_path / "results.jsonl")

    (recorded,) = read_rows(tmp_path / "results.jsonl")
    assert recorded["id"] == "sample_vs_peer" and recorded["figure"] == 120.0 and recorded["ratio"] == 30.0
    assert {"date", "machine", "versions", "revision", "unit", "against"} <= set(recorded)


@pytest.fixture
def untimed(monkeypatch):
    """Each function is run twice: a benchmark repeats it for seconds."""

    def seconds(*functions, **_: object) -> list[float]:
        return results.seconds(*functions, rounds=1, min_seconds=0)

    monkeypatch.setattr(sampling, "seconds", seconds)
    monkeypatch.setattr(training, "seconds", seconds)


def test_the_sampling_benchmark_runs_and_records_its_rows(tmp_path, capsys, untimed):
    sampling.main(["--quick", "--out", str(tmp_path / "results.jsonl")])

    rows = {row["id"]: row for row in read_rows(tmp_path / "results.jsonl")}
    assert set(rows) == {"decode_vs_matmul", "best_of_n", "next_scale_first", "next_scale_bulk"}
    decode = rows["decode_vs_matmul"]
    assert decode["ratio"] == decode["figure"] / decode["limit"]
    assert "| `best_of_n` | 8 candidates of one caption |" in capsys.readouterr().out


def test_the_training_benchmark_runs_and_the_cost_model_reads_its_rate(tmp_path, capsys, untimed):
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

    message = (
        "left out: everything against dalle-pytorch. pip could not install bench/peer.lock into .bench/peer: "
    )
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / ".bench" / "peer" / "lock").exists()


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_each_tokenizer_of_the_benchmark_has_valid_settings_and_the_seed(kind):
    changes = {"image_tokenizer": {"training": {"steps": 7}}}
    params = tokenizers.settings(kind, seed=3, changes=changes)

    block = params["image_tokenizer"]
    with torch.device("meta"):
        config = components.model_config("image_tokenizers", block, "image_tokenizer")
        model = components.build("image_tokenizers", block["kind"], config, image_size=64)
    assert model.vocab_size == 512 and params["seed"] == 3
    assert block["training"]["steps"] == 7 and block["training"]["batch_size"] == 16


@pytest.mark.parametrize("kind", decoders.KINDS)
def test_each_decoder_of_the_benchmark_has_its_presets_settings_scaled_to_its_updates(kind):
    params = decoders.settings(decoders.Training(kind, 90, 3), {"training": {"batch_size": 4}})

    block = params["decoder"]
    assert params["seed"] == 3 and block["kind"] == kind and block["training"]["batch_size"] == 4
    assert block["training"]["steps"] == block["training"]["evaluate_every"] == 90
    assert block["training"]["warmup_steps"] == 15
    if kind == "consistency":
        assert block[kind]["distill_from"] == 60  # 600 of 900


def test_a_failed_stage_of_the_tokenizers_benchmark_names_itself_and_the_cause(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unknown://x")  # a database of its own takes three seconds
    params = tokenizers.settings("dvae", 0, {"data": {"source": "folder", "path": "nowhere"}})
    with pytest.raises(UserError, match="^prepare_pairs failed: prepare_pairs: .*nowhere"):
        tokenizers.run_stages(tmp_path, params, ["prepare_pairs"])


def test_an_image_is_read_right_only_if_every_attribute_of_its_caption_is():
    caption = "a large red circle above a small blue square"
    scene = render(parse_caption(caption), np.random.default_rng(0))
    image = torch.from_numpy(scene).permute(2, 0, 1)[None] / 255
    other = caption.replace("red", "green")
    assert tokenizers.share_read(torch.cat([image, image]), [caption, other]) == 0.5


@pytest.mark.parametrize("benchmark", [tokenizers, decoders])
def test_a_folder_with_files_that_is_no_folder_of_benchmarks_is_never_emptied(benchmark, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        benchmark.main(["--folder", str(tmp_path)])
    assert f"--folder: {tmp_path} is not empty. Remove it, or give a new folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow  # the stages of a whole run, each in its own process
def test_the_tokenizers_benchmark_records_the_figures_of_a_whole_run_and_prints_the_table(tmp_path, capsys):
    few = {"warmup_steps": 5, "log_every": 10, "evaluate_every": 20, "checkpoint_every": 20}
    training = {"training": {"steps": 20, **few}}
    changes = {
        "data": {"scenes": {"count": 300, "validation_count": 40, "unseen_count": 40}},
        "image_tokenizer": {"training": {"steps": 40, **few}},
        "decoder": training,
        "generator": training,
        "sampling": {"candidates": 2, "prompts_per_split": 8},
        "evaluation": {"kmeans_images": 100},
    }
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump(changes))
    paths = {"settings": "changes.yaml", "folder": "runs", "out": "results.jsonl"}
    options = [word for name, path in paths.items() for word in (f"--{name}", str(tmp_path / path))]
    tokenizers.main(["--kinds", "vqvae", *options])

    (row,) = read_rows(tmp_path / "results.jsonl")
    names = {figure.partition(" ")[0] for figure in row["what"].split(", ")}
    halves = {"match_unseen_half_1", "match_unseen_half_2", "psnr_kmeans", "psnr_kmeans_unseen"}
    assert tokenizers.COLUMNS.keys() | halves <= names
    assert row["id"] == "tokenizer_vqvae" and row["limit"] > row["figure"] > 5
    header, _, line = capsys.readouterr().out.strip().splitlines()
    assert header.startswith("| tokenizer | seed | tokens |") and line.startswith("| vqvae | 0 | 64 |")


@pytest.mark.slow  # trains three decoders on the example's tokenizer
def test_the_decoders_benchmark_prints_a_line_for_each_number_of_steps_and_writes_the_sheet(tmp_path, capsys):
    data = {"scenes": {"count": 60, "validation_count": 40, "unseen_count": 20}}
    tiny_default = decoders.read_preset("default")
    tiny_default["data"] |= data
    decoders.run_stages(tmp_path / "scenes", tiny_default, ["prepare_pairs"])
    paths = {
        "pairs": tmp_path / "scenes/data/pairs",
        "folder": tmp_path / "runs",
        "out": tmp_path / "results.jsonl",
    }
    options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]

    decoders.main(["--updates", "3", *options])

    header, _, *lines, sheet = capsys.readouterr().out.strip().splitlines()
    assert header.startswith("| decoder | updates | seed | dB |")
    names = ["tokenizer", "unet"]
    for kind in ("flow", "consistency"):
        names += [f"{kind}, 1 step", f"{kind}, 2 steps", f"{kind}, 4 steps"]
    assert [line.split(" | ")[0][2:] for line in lines] == names
    cells = [line.strip("| ").split(" | ") for line in lines[1:]]
    assert all(len(row) == 3 + len(decoders.COLUMNS) and all(row) for row in cells)
    rows = read_rows(tmp_path / "results.jsonl")
    assert {row["id"] for row in rows} == {"decoder_unet", "decoder_flow", "decoder_consistency"}
    assert abs(rows[0]["limit"] - rows[0]["figure"]) < 3  # hardly trained: near the tokenizer's images
    assert sheet.startswith(
        f"{tmp_path}/runs/sheet.png, from above: true; tokenizer; unet, 3 updates, seed 0;"
    )
    assert (tmp_path / "runs/sheet.png").stat().st_size > 10_000
