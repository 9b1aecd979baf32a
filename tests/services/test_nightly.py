"""The flows around the pipeline: nightly, generate, sweep, status.

With a stand-in for the registry, which has its own tests.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.registry
from flows import generate, nightly, status, sweep
from flows.dvc.git import changed_files, commit_if_all
from tests.helpers.images import write
from tests.helpers.mlflow_server import new_mlflow_database
from tests.helpers.prefect_server import ROOT, tiny_project
from tests.helpers.registering import run_git
from thousandwords.core.errors import UserError


@pytest.fixture
def folder(server, tmp_path, monkeypatch):
    """An empty working folder, with that server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    new_mlflow_database(tmp_path / ".mlflow/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/.mlflow/mlflow.db")
    with temporary_settings({PREFECT_API_URL: server.api}):
        yield tmp_path


def replace_registry(monkeypatch, **functions) -> None:
    """Replace flows/registry/commands.py by these functions."""
    stand_in = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, "flows.registry.commands", stand_in)
    monkeypatch.setattr(flows.registry, "commands", stand_in, raising=False)


def test_a_nightly_run_updates_data_runs_stale_stages_and_promotes(folder, monkeypatch):
    stage = {"cmd": "cp data/new package", "deps": ["data/new"], "outs": ["package"]}
    write(tiny_project(folder, {"package_model": stage}), {"elsewhere": "monday", "data/.keep": ""})
    import_url = [sys.executable, "-m", "dvc", "import-url", "-q", str(folder / "elsewhere"), "data/new"]
    subprocess.run(import_url, check=True)
    champions = []
    replace_registry(monkeypatch, register=lambda: "7", promote=lambda version: champions.append(version))
    (folder / "elsewhere").write_text("tuesday")

    first = nightly.nightly()

    assert first == {"ran": ["package_model"], "version": "7", "refusals": []}
    assert (folder / "package").read_text() == "tuesday" and champions == ["7"]
    assert nightly.nightly()["ran"] == []


def test_a_version_that_the_gate_rejects_is_reported_and_is_no_failure(folder, monkeypatch, server):
    tiny_project(folder, {"package_model": {"cmd": "touch package", "outs": ["package"]}})
    reason = "- psnr_hard is 20.1, the champion's 30.1"

    def reject(version):
        raise UserError(f"version 8 was not promoted against champion 7:\n{reason}")

    replace_registry(monkeypatch, register=lambda: "8", promote=reject)
    assert reason in nightly.nightly()["refusals"]
    query = {"artifacts": {"key": {"any_": ["champion"]}}, "sort": "CREATED_DESC"}
    decision = server.ask("artifacts/filter", query)[0]["data"]
    assert "version 8 was not promoted" in decision and "psnr_hard is 20.1" in decision
    assert server.runs()[-1]["state_type"] == "COMPLETED"


def test_a_pipeline_that_fails_registers_nothing(folder, monkeypatch):
    tiny_project(folder, {"package_model": {"cmd": "exit 2", "outs": ["package"]}})
    replace_registry(monkeypatch, register=lambda: pytest.fail("it was registered"))
    with pytest.raises(RuntimeError, match="stage package_model failed with code 2"):
        nightly.nightly()


@pytest.fixture
def clone(tmp_path):
    """A committed project with an imported file."""
    write(
        tmp_path, dict.fromkeys(("dvc.lock", "data/photos.dvc", "results/headline.json", "params.yaml"), "1")
    )
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        run_git(tmp_path, *args)
    return tmp_path


def test_a_nightly_run_commits_its_outputs_and_no_change_of_a_user(clone):
    assert commit_if_all(nightly.may_commit, "night", clone) is None
    write(clone, dict.fromkeys(("dvc.lock", "data/photos.dvc", "results/headline.json", "notes.txt"), "2"))
    commit = commit_if_all(nightly.may_commit, "night", clone)
    assert commit and run_git(clone, "log", "--format=%s") == "night\nfirst"
    assert changed_files(root=clone) == ["notes.txt"]

    write(clone, {"dvc.lock": "3", "params.yaml": "3"})
    assert commit_if_all(nightly.may_commit, "night", clone) is None
    assert changed_files("-uno", root=clone) == ["dvc.lock", "params.yaml"]


def test_the_champion_generates_images_of_each_prompt(folder, monkeypatch, package_folder):
    fetched = []

    def fetch(alias, target):
        fetched.append((alias, str(target)))
        return package_folder

    replace_registry(monkeypatch, FETCHED=Path(".store/registry"), fetch=fetch)
    grids = generate.generate(["a small red star", "--help me"], candidates=2, seed=3)
    assert fetched == [("champion", ".store/registry")] and len(grids) == 2
    for grid in grids:
        assert Path(grid).is_file() and len(list(Path(grid).with_suffix("").glob("*.png"))) == 2


def test_a_sweep_compares_its_experiments_and_leaves_the_folder_unchanged(folder):
    square = "x=$(cut -d' ' -f2 params.yaml); echo '{\"y\": '$((x * x))'}' > m.json"
    stage = {"cmd": "sh square.sh", "params": ["x"], "metrics": [{"m.json": {"cache": False}}]}
    tiny_project(folder, {"evaluate": stage})
    write(folder, {"square.sh": square, "params.yaml": "x: 1\n", ".gitignore": "/.mlflow/\n/.prefect/\n"})
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "all")

    rows = sweep.sweep({"x": [2, 3]})

    assert [(row["x"], row["y"]) for row in rows] == [(2, 4), (3, 9)]
    assert yaml.safe_load((folder / "params.yaml").read_text()) == {"x": 1}
    assert not (folder / "m.json").exists()
    client = mlflow.MlflowClient(f"sqlite:///{folder}/.mlflow/mlflow.db")
    runs = client.search_runs(["1"], "tags.sweep LIKE 'sweep-%'")
    assert {run.data.params["x"]: run.data.metrics for run in runs} == {"2": {"y": 4.0}, "3": {"y": 9.0}}


def test_status_shows_runs_champion_and_stale_stages(folder, monkeypatch):
    tiny_project(folder, {"first": {"cmd": "touch a", "outs": ["a"]}})
    replace_registry(monkeypatch, show=lambda: ["version 2  sound @champion", "version 1  sound"])
    monkeypatch.setattr(status.gpu_lock, "visible", lambda: ["0"])
    output = status.status()
    assert "server    http://127.0.0.1:" in output and "nothing runs" in output
    assert "GPU 0 is free" in output and "version 1" not in output
    assert "champion  version 2  sound @champion" in output
    assert "stages    stale: first" in output and "metrics   none yet" in output


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "none (PREFECT_API_URL is not set)"),
        ("http://127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer (ConnectError)"),
    ],
)
def test_status_works_without_a_server_and_says_so(tmp_path, monkeypatch, url, message):
    def show():
        raise UserError("the registry does not answer")

    monkeypatch.chdir(tmp_path)
    replace_registry(monkeypatch, show=show)
    with temporary_settings({PREFECT_API_URL: url}):
        output = status.status()
    assert message in output and "champion  the registry does not answer" in output
    assert "stages    unknown: " in output
