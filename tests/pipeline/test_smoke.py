"""The whole pipeline: `dvc repro` on the smoke preset in a new folder, and what must hold after it."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import yaml

from stages.runtime.tracking import find_records
from tests.helpers import smoke_project
from tests.helpers.paths import ROOT
from tests.helpers.preloaded_python import preloaded_python
from tests.helpers.registering import commit
from tests.helpers.smoke_project import change, command, environment, new_project, ran
from thousandwords.core.files import sha256_of
from thousandwords.core.params import flatten
from thousandwords.core.run_records import output_paths, read_records
from thousandwords.data.images import decode_png
from thousandwords.evaluation.headline import headline
from thousandwords.inference.package import load_package
from thousandwords.planning.presets import preset_text

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def path():
    """A PATH whose `python` has PyTorch and MLflow imported already."""
    own = environment()
    with preloaded_python(own) as first:
        yield f"{first}:{own['PATH']}"


@pytest.fixture(scope="module")
def repro(path):
    return functools.partial(smoke_project.repro, PATH=path)


@pytest.fixture(scope="module")
def project(repro, tmp_path_factory) -> Path:
    folder = new_project(tmp_path_factory.mktemp("project"))
    assert len(ran(repro(folder))) == len(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    return folder


def test_metrics_have_the_stable_layout(project):
    figures = json.loads((project / "results/metrics.json").read_text())
    assert all(5 < figures["reconstruction"][name] < 60 for name in ("psnr_hard", "psnr_kmeans"))
    assert {"perplexity", "perplexity_kmeans", "used", "vocab_size"} <= set(figures["codebook"])
    assert figures["codebook"]["vocab_size"] == 64 and figures["n"] == 4
    assert {"val_loss_text", "val_loss_image"} == set(figures["generator"])
    decoder = figures["decoder"]
    assert 5 < decoder["psnr_hard"] < 60 and all(
        0 < decoder[f"sharpness{name}"] < 9 for name in ("", "_tokenizer")
    )
    assert decoder["clip_frechet"] >= 0 and "decoder" in figures["verdicts"]
    assert figures["clip_score"]["n1"] <= figures["clip_score"]["best"]
    fidelity = figures["fidelity"]
    assert len(fidelity["clip_frechet"]["distance"]) == 9 and fidelity["clip_frechet"]["drawn"] == 16
    assert fidelity["best_of"]["n"] == [1, 2, 4] and fidelity["best_of"]["captions"] == 4
    assert fidelity["overlap"]["held_out"] == 48 and 0 <= fidelity["overlap"]["share"] <= 1
    for split in ("seen", "unseen"):
        for part in ("all", "scene"):
            assert {"n1", "best"} <= set(figures["caption_match"][split][part])


def test_dvc_shows_twelve_metrics_curves_and_images(project):
    """And git sees the small files that compare runs, but none of the outputs in DVC's cache."""
    (shown,) = json.loads(command(project, "dvc", "metrics", "show", "--json").stdout)[""]["data"].values()
    assert shown["data"] == headline(json.loads((project / "results/metrics.json").read_text()))
    assert len(shown["data"]) == 12

    plots = command(project, "dvc", "plots", "show", "--json")
    found = json.loads(plots.stdout)
    assert "errors" not in found and plots.stderr == ""
    types = [plot["type"] for plots in found["data"].values() for plot in plots]
    assert (
        types.count("vega") == 5
        and types.count("image") == len(list((project / "results/plots").iterdir())) > 8
    )

    status = command(project, "git", "status", "--porcelain", "-uall", "results").stdout
    names = {line[3:] for line in status.splitlines()}
    assert {"results/headline.json", "results/prompts.csv", "results/plot_data/generator.json"} <= names
    assert len(names) == 10


def test_the_same_run_again_gives_every_output_byte_by_byte_so_that_git_sees_no_change(project, repro):
    """Without checkpoints and finished shards, and with no run taken from DVC's cache."""
    git = functools.partial(command, project, "git")
    commit(project)
    first = read_records(project)
    assert [*first] == [*output_paths(project)]
    shutil.rmtree(project / ".ckpt")
    shutil.rmtree(project / ".store")

    assert len(ran(repro(project, "-f"))) == len(first)

    assert git("status", "--porcelain").stdout == "", git("diff", "dvc.lock").stdout
    second = read_records(project)
    assert all(first[stage]["run_id"] != second[stage]["run_id"] for stage in first)


def test_how_the_run_went_is_a_page_beside_the_report(project):
    page = (project / "results/runs.html").read_text()
    for stage, record in read_records(project).items():
        assert f"<code>{stage}</code>" in page and record["run_id"] in page
    assert "Images while it trained" in page


def test_without_the_files_records_come_from_mlflow_and_without_it_they_are_not_known(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = read_records(project)
    (project / "results/runs").rename(project / "results/moved")
    assert find_records(project) == here
    (project / ".mlflow").rename(project / "results/moved/mlflow")
    assert find_records(project) == {}
    (project / "results/moved/mlflow").rename(project / ".mlflow")
    (project / "results/moved").rename(project / "results/runs")


def test_a_changed_setting_reruns_what_it_touches_with_the_same_digits_and_going_back_trains_nothing(
    project, repro
):
    first = json.loads((project / "results/metrics.json").read_text())
    change(project, "evaluation.report_images", 3)
    assert ran(repro(project)) == ["check_params", "evaluate"]

    second = json.loads((project / "results/metrics.json").read_text())
    assert first == second
    protocol = (
        "features features_sha256 features_preprocessing preprocessing counts blur clip_score intervals seed"
    )
    assert set(first["protocol"]) == {*protocol.split(), "threads", "versions", "checkpoints"}
    manifest = json.loads((project / "models/scorer/manifest.json").read_text())
    assert first["protocol"]["checkpoints"]["scorer"] == manifest["sha256"]

    (project / "params.yaml").write_text(preset_text("smoke", ROOT / "presets"))
    assert ran(repro(project)) == ["evaluate"]  # its tables are in git, so DVC's cache has not all of it


def test_there_is_a_page_and_an_image_per_prompt(project):
    page = (project / "results/report.html").read_text()
    assert "a small red star above a large blue square" in page and "https://" not in page
    grids = sorted((project / "results/ranked").glob("0*.png"))
    assert len(grids) == 9  # 4 seen, 4 unseen, and the one of params.yaml
    assert decode_png(grids[0].read_bytes()).shape[2] == 3


def test_a_run_can_be_registered_and_become_the_champion(project, tmp_path, monkeypatch):
    from flows.registry.commands import fetch, promote, register, show

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # 4 seen, 4 unseen; the default of 64 is more than this preset samples
    change(project, "gate", {"minimum_prompts": 8})
    commit(project)

    assert register(project) == promote(project) == "1"

    assert show(project)[0].endswith("  sound @challenger @champion")
    package = load_package(fetch("champion", tmp_path, project))
    assert package.fingerprint == load_package(project / "models/package").fingerprint
    (project / "params.yaml").write_text(preset_text("smoke", ROOT / "presets"))


def test_nothing_runs_again_when_nothing_changed(project, repro):
    assert ran(repro(project)) == []


def test_the_package_generates_and_the_same_seed_gives_the_same_image(project):
    package = load_package(project / "models/package")
    first, again = (package.generate("a large blue circle on sand", candidates=3, seed=5) for _ in range(2))
    scores = [candidate.score for candidate in first]
    assert scores == sorted(scores, reverse=True)
    assert all((a.image == b.image).all() for a, b in zip(first, again, strict=True))
    files = [path for path in (project / "models/package").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_each_stage_has_its_mlflow_run_under_one_parent(project):
    import mlflow

    records = [json.loads(path.read_text()) for path in sorted((project / "results/runs").glob("*.json"))]
    client = mlflow.MlflowClient(f"sqlite:///{project}/.mlflow/mlflow.db")
    run = client.get_run(next(record["run_id"] for record in records if record["stage"] == "train_generator"))
    assert run.info.status == "FINISHED" and run.data.params["generator.training.steps"] == "30"
    history = client.get_metric_history(run.info.run_id, "image_loss")
    assert [point.step for point in history] == [10, 20, 30]
    again = ("check_params", "evaluate")
    (first,) = {record["parent_run_id"] for record in records if record["stage"] not in again}
    assert run.data.tags["mlflow.parentRunId"] == first


def test_the_run_of_a_pipeline_shows_its_figures_data_and_images_also_where_one_stage_ran(project):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/.mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("thousandwords").experiment_id
    evaluations = client.search_runs([experiment], "tags.stage = 'evaluate'")
    settings = flatten(yaml.safe_load(preset_text("smoke", ROOT / "presets")))
    for run in (client.get_run(evaluation.data.tags["mlflow.parentRunId"]) for evaluation in evaluations):
        assert set(run.data.params) == set(settings)
        assert len(run.data.metrics) >= 10 and len(run.inputs.dataset_inputs) == 1
        files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        assert files >= {"overview.png", "report.html", "params.yaml"}
    assert len(evaluations) == 4  # whole, again, another setting, going back


def test_a_wrong_setting_stops_before_anything_is_lost(project, path):
    before = sha256_of(project / "results/metrics.json")
    change(project, "generator.transformer.layers", 3)
    done = command(project, "dvc", "repro", PATH=path)
    assert done.returncode != 0
    sentence = "generator.transformer has no key 'layers'. Did you mean 'num_layers'?"
    assert sentence in done.stdout + done.stderr
    assert sha256_of(project / "results/metrics.json") == before and (project / "models/generator").is_dir()
