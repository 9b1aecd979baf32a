"""The whole pipeline: `dvc repro` on the smoke preset in a new folder, and what must hold after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.paths import ROOT
from thousandwords.core.files import sha256_of
from thousandwords.data.images import decode_png
from thousandwords.inference.package import load_package

PARTS = ("thousandwords", "stages", "flows", "presets", "data/own", "data/inpaint")
FILES = ("dvc.yaml", ".dvcignore", ".gitignore", "Makefile")
pytestmark = pytest.mark.pipeline


def command(project: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    """Run a command in the project, with the environment active."""
    return subprocess.run(
        words, cwd=project, env=environment(**more), capture_output=True, text=True, timeout=600
    )


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    quiet = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **quiet, **more}


def new_project(folder: Path) -> Path:
    """A copy of what git tracks, with a repository of its own and the smoke preset in use."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copy(ROOT / ".dvc" / ".gitignore", folder / ".dvc" / ".gitignore")
    shutil.copy(ROOT / "presets" / "smoke.yaml", folder / "params.yaml")
    command(folder, "git", "init", "-q")
    return folder


def repro(project: Path, *words: str) -> str:
    done = command(project, "dvc", "repro", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    """The stages that DVC says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def change(project: Path, path: str, value: object) -> None:
    """Sets one setting of params.yaml: change(project, "sampling.candidates", 5)"""
    params = yaml.safe_load((project / "params.yaml").read_text())
    *parents, last = path.split(".")
    block = params
    for name in parents:
        block = block[name]
    block[last] = value
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = new_project(tmp_path_factory.mktemp("project"))
    assert len(ran(repro(folder))) == len(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    return folder


def test_metrics_have_the_stable_layout(project):
    figures = json.loads((project / "results/metrics.json").read_text())
    assert (
        5 < figures["reconstruction"]["psnr_hard"] < 60 and 5 < figures["reconstruction"]["psnr_kmeans"] < 60
    )
    assert {"perplexity", "perplexity_kmeans", "used", "vocab_size"} <= set(figures["codebook"])
    assert figures["codebook"]["vocab_size"] == 64 and figures["n"] == 4
    assert {"val_loss_text", "val_loss_image"} == set(figures["generator"])
    assert figures["clip_score"]["n1"] <= figures["clip_score"]["best"]
    assert (
        len(figures["fidelity"]["clip_frechet"]["distance"]) == 9
        and figures["fidelity"]["clip_frechet"]["drawn"] == 16
    )
    assert (
        figures["fidelity"]["best_of"]["n"] == [1, 2, 4] and figures["fidelity"]["best_of"]["captions"] == 4
    )
    assert (
        figures["fidelity"]["overlap"]["held_out"] == 48 and 0 <= figures["fidelity"]["overlap"]["share"] <= 1
    )
    for split in ("seen", "unseen"):
        for part in ("all", "scene"):
            assert {"n1", "best"} <= set(figures["caption_match"][split][part])
    assert set(figures["seconds"]) >= {"prepare_pairs", "train_generator", "sample_images", "evaluate"}


def test_the_same_evaluation_twice_gives_the_same_digits_and_records_its_protocol(project, tmp_path):
    stage = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]["evaluate"]["cmd"].split()
    stage[stage.index("--out") + 1] = str(tmp_path / "again")

    done = command(project, *stage, "--record", str(tmp_path / "record.json"))

    assert done.returncode == 0, done.stderr
    first, second = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (project / "results", tmp_path / "again")
    )
    assert {**first, "seconds": None} == {**second, "seconds": None}
    assert set(first["protocol"]) == {
        "features",
        "features_sha256",
        "features_preprocessing",
        "preprocessing",
        "counts",
        "blur",
        "clip_score",
        "intervals",
        "seed",
        "threads",
        "versions",
        "checkpoints",
    }
    manifest = json.loads((project / "models/scorer/manifest.json").read_text())
    assert first["protocol"]["checkpoints"]["scorer"] == manifest["sha256"]


def test_there_is_a_page_and_an_image_per_prompt(project):
    page = (project / "results/report.html").read_text()
    assert "a small red star above a large blue square" in page and "https://" not in page
    grids = sorted((project / "results/ranked").glob("0*.png"))
    assert len(grids) == 9  # 4 seen, 4 unseen, and the one of params.yaml
    assert decode_png(grids[0].read_bytes()).shape[2] == 3


def test_a_run_can_be_registered_and_become_the_champion(project, tmp_path, monkeypatch):
    from flows.registry.commands import fetch, promote, register, show

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    change(
        project, "gate", {"minimum_prompts": 8}
    )  # 4 seen, 4 unseen; the default of 64 is more than this preset samples
    for words in (
        ["add", "-A"],
        ["-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", "a run"],
    ):
        assert command(project, "git", *words).returncode == 0

    assert register(project) == promote(project) == "1"

    assert show(project)[0].endswith("  sound @challenger @champion")
    package = load_package(fetch("champion", tmp_path, project))
    assert package.fingerprint == load_package(project / "models/package").fingerprint
    shutil.copy(ROOT / "presets" / "smoke.yaml", project / "params.yaml")


def test_nothing_runs_again_when_nothing_changed(project):
    assert ran(repro(project)) == []


def test_one_changed_setting_reruns_what_it_touches_and_going_back_runs_nothing(project):
    change(project, "evaluation.report_images", 3)
    assert ran(repro(project)) == ["check_params", "evaluate"]
    change(project, "evaluation.report_images", 4)
    assert "evaluate" not in ran(repro(project))


def test_the_package_generates_and_the_same_seed_gives_the_same_image(project):
    package = load_package(project / "models/package")
    first, again = (package.generate("a large blue circle on sand", candidates=3, seed=5) for _ in range(2))
    scores = [candidate.score for candidate in first]
    assert scores == sorted(scores, reverse=True)
    assert all((a.image == b.image).all() for a, b in zip(first, again, strict=True))
    assert {path.suffix for path in (project / "models/package").rglob("*") if path.is_file()} == {
        ".json",
        ".safetensors",
    }


def test_each_stage_has_its_mlflow_run_under_one_parent(project):
    import mlflow

    records = [json.loads(path.read_text()) for path in sorted((project / "results/runs").glob("*.json"))]
    client = mlflow.MlflowClient(f"sqlite:///{project}/.mlflow/mlflow.db")
    run = client.get_run(next(record["run_id"] for record in records if record["stage"] == "train_generator"))
    assert run.info.status == "FINISHED" and run.data.params["generator.training.steps"] == "30"
    history = client.get_metric_history(run.info.run_id, "image_loss")
    assert [point.step for point in history] == [10, 20, 30]
    first = {
        record["parent_run_id"] for record in records if record["stage"] not in ("check_params", "evaluate")
    }
    assert len(first) == 1 and run.data.tags["mlflow.parentRunId"] in first


def test_the_flow_runs_the_same_graph_and_finds_nothing_to_do(project):
    done = command(project, sys.executable, "-m", "flows.pipeline", PREFECT_HOME=str(project / ".prefect"))
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
        assert f"{stage} | " in done.stdout + done.stderr


def test_a_wrong_setting_stops_before_anything_is_lost(project):
    before = sha256_of(project / "results/metrics.json")
    change(project, "generator.transformer.layers", 3)
    done = command(project, "dvc", "repro")
    assert done.returncode != 0
    assert (
        "generator.transformer has no key 'layers'. Did you mean 'num_layers'?" in done.stdout + done.stderr
    )
    assert sha256_of(project / "results/metrics.json") == before and (project / "models/generator").is_dir()
    shutil.copy(ROOT / "presets" / "smoke.yaml", project / "params.yaml")


def test_a_training_that_was_stopped_resumes_and_ends_as_if_it_was_never_stopped(project, tmp_path):
    """SIGINT in the middle: a checkpoint is saved, the next run resumes from it, and the weights are the same
    bits."""
    expected = sha256_of(project / "models/generator/weights.safetensors")
    arguments = [
        *(sys.executable, "-m", "stages.train_generator", "--tokens", "data/tokens"),
        *("--text-tokenizer", "models/text_tokenizer", "--image-tokenizer", "models/image_tokenizer"),
        *("--out", str(tmp_path / "generator"), "--curves", str(tmp_path / "curves.json")),
        *("--record", str(tmp_path / "record.json")),
    ]
    shutil.rmtree(project / ".ckpt/train_generator")
    running = subprocess.Popen(arguments, cwd=project, env=environment(), stderr=subprocess.PIPE, text=True)
    checkpoints = project / ".ckpt/train_generator"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    output = running.communicate(timeout=120)[1]

    stopped_early = running.returncode == 143 and "the next run resumes from there" in output
    assert stopped_early or running.returncode == 0, output
    done = command(project, *arguments)

    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "generator/weights.safetensors") == expected


def test_a_second_run_of_a_stage_in_the_same_folder_is_rejected(project):
    import fcntl

    with open(project / ".ckpt/locks/check_params", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = command(project, sys.executable, "-m", "stages.check_params", "--out", "data/checked2")
    assert done.returncode == 2 and "another run of this stage" in done.stderr
