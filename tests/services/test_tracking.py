"""What MLflow shows of a pipeline run, and a project that was moved or copied."""

import json
import shutil
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml

from flows.registry.commands import fetch, register
from stages.runtime import tracking
from tests.helpers.images import write
from tests.helpers.mlflow_server import new_mlflow_database
from tests.helpers.records import write_record
from tests.helpers.registering import METRICS, train
from thousandwords.core.files import write_json
from thousandwords.core.manifest import write_manifest
from thousandwords.data.images import encode_png

SHEET = np.zeros((4, 4, 3), np.uint8)
PROMPTS = [f"a prompt of a user, number {number}" for number in range(400)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a project, with an empty database of MLflow."""
    new_mlflow_database(tmp_path / ".mlflow/mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("THOUSANDWORDS_PIPELINE", "run-1")
    return tmp_path


def write_results(folder: Path) -> None:
    """What `evaluate` finds and leaves: pairs, metrics, images, a report."""
    settings = {"path": "data/own", "licence": "CC-BY-4.0"}
    counts = {"n_in": 8, "splits": {"train": 6, "validation": 2}}
    (folder / "data/pairs").mkdir(parents=True)
    write_manifest(
        folder / "data/pairs",
        {},
        {"source": "folder", "image_size": 16, "counts": counts, "settings": settings},
    )
    write_json(folder / "results/metrics.json", METRICS)
    sheet = encode_png(SHEET)
    for step in range(50, 1001, 50):
        path = folder / f"results/training/train_generator/step-{step:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sheet)
    (folder / "results/ranked").mkdir()
    (folder / "results/ranked/overview.png").write_bytes(sheet)
    (folder / "results/report.html").write_text("a report")


def run_stage(name: str, params: dict) -> mlflow.entities.Run:
    """Track a stage from its start to its end; the run of its pipeline."""
    tracker = tracking.Tracker(name, {"seed": params["seed"]})
    tracker.log_pipeline_params(params)
    tracker.summarize_pipeline()
    tracker.end("FINISHED")
    return tracker.client.get_run(tracker.parent_id)


def names_in(run: mlflow.entities.Run, path: str | None = None) -> list[str]:
    return [Path(entry.path).name for entry in tracking.client().list_artifacts(run.info.run_id, path)]


def test_the_run_of_a_pipeline_shows_settings_figures_data_images_and_where_it_came_from(folder, monkeypatch):
    write_results(folder)
    monkeypatch.setenv("DVC_EXP_NAME", "tall-hats")
    monkeypatch.setenv("THOUSANDWORDS_FLOW_RUN", "http://127.0.0.1:4200/runs/flow-run/7")
    params = {
        "seed": 3,
        "sampling": {"prompts": PROMPTS},
        "many": {f"key{number}": number for number in range(150)},
    }
    run_stage("train_scorer", params)
    run = run_stage("evaluate", params)

    assert run.data.params["seed"] == "3" and len(run.data.params) == 152
    prompts = run.data.params["sampling.prompts"]
    assert len(prompts) == 6000 and prompts.endswith(
        " ... (cut here: params.yaml of the pipeline's run has all of it)"
    )
    assert {"reconstruction.psnr_hard", "clip_score.best", "caption_match.seen.all.n1"} <= set(
        run.data.metrics
    )
    assert run.data.metrics["reconstruction.psnr_hard"] == 30
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, len(data.dataset.digest)) == ("folder", 12)
    assert json.loads(data.dataset.profile) == {"num_rows": 8, "train": 6, "validation": 2, "image_size": 16}
    assert json.loads(data.dataset.source) == {"uri": "data/own", "licence": "CC-BY-4.0"}
    assert set(names_in(run)) == {"images", "overview.png", "params.yaml", "report.html"}
    steps = sorted(int(name.split("+")[2]) for name in names_in(run, "images") if name.endswith(".png"))
    assert steps == [100, 250, 400, 550, 700, 850, 1000]
    path = tracking.client().download_artifacts(run.info.run_id, "params.yaml")
    assert yaml.safe_load(Path(path).read_text()) == params
    assert run.data.tags["dvc.experiment"] == "tall-hats"
    assert run.data.tags["prefect.flow_run"] == "http://127.0.0.1:4200/runs/flow-run/7"
    assert run.info.status == "FINISHED"


def test_a_training_shows_what_the_machine_does_and_a_short_stage_never_asks(folder, monkeypatch):
    monkeypatch.setattr(tracking, "SECONDS_BEFORE_SYSTEM_METRICS", 0.05)
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_SYSTEM_METRICS", 0.05)
    trackers = [tracking.Tracker(name, {}) for name in ("train_scorer", "rank_images")]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        metrics = [tracker.client.get_run(tracker.run_id).data.metrics for tracker in trackers]
        if "system/cpu_utilization_percentage" in metrics[0]:
            break
        time.sleep(0.1)
    for tracker in trackers:
        tracker.end("FINISHED")
    assert "system/cpu_utilization_percentage" in metrics[0] and metrics[1] == {}


def write_outputs(root: Path, text: str) -> None:
    stages = {stage: {"outs": [stage]} for stage in ("train_scorer", "rank_images")}
    write(root, {"dvc.yaml": yaml.safe_dump({"stages": stages}), **dict.fromkeys(stages, text)})


def test_the_record_of_outputs_that_dvc_brought_is_found_in_mlflow_by_what_they_are(folder, tmp_path):
    for text, seconds in (("1", 5.0), ("1", 6.0), ("2", 7.0)):
        write_outputs(folder, text)
        tracker = tracking.Tracker("train_scorer", {})
        tracker.record(write_record(folder, "train_scorer", run_id=tracker.run_id, seconds=seconds))
        tracker.end("FINISHED")
    assert tracking.find_records()["train_scorer"]["seconds"] == 7.0

    write_outputs(folder, "1")  # as `dvc checkout` does, which leaves the record of the last run
    assert {stage: record["seconds"] for stage, record in tracking.find_records().items()} == {
        "train_scorer": 6.0
    }
    assert tracking.find_records(stages=["rank_images"]) == {}

    write_outputs(folder, "made elsewhere")
    assert tracking.find_records() == {}


def test_where_nothing_was_tracked_records_are_not_known_and_no_database_is_made(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_outputs(tmp_path, "pulled")
    assert tracking.find_records(tmp_path) == {} and not (tmp_path / ".mlflow").exists()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking.find_records(tmp_path) == {}
    assert capsys.readouterr().err.startswith("records: MLflow at http://127.0.0.1:9 cannot be used (")


def listing(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_copied_project_reads_and_writes_its_own_files_only(two_versions, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    original, copy = tmp_path / "the original", tmp_path / "copy"
    for folder in (original, copy):  # the second copy names the files of the first
        shutil.copytree(two_versions if folder is original else original, folder)
        fetch("champion", tmp_path / "fetched", folder)
        message = capsys.readouterr().err
    assert message == (
        f"tracking: this project was moved or copied from {original}/, so its MLflow records now point to the files "
        "in this folder\n"
    )
    before = listing(original)
    shutil.move(original, tmp_path / "away")  # so that nothing can be read from there
    train(copy, seed=2)
    assert register(copy) == "3" and not original.exists() and listing(tmp_path / "away") == before
    assert fetch("1", tmp_path / "fetched again", copy)
    assert capsys.readouterr().err == ""
