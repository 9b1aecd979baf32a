"""The flows around the pipeline: nightly, draw, sweep; with a stand-in for the registry, which has tests of its own."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import prefect.settings
import pytest
import yaml

import flows
from flows import draw, nightly, status, sweep
from flows._git import changes, commit_all_of
from tests.orchestra import ROOT, tiny_project
from thousandwords.errors import UserError


@pytest.fixture
def here(server, tmp_path, monkeypatch):
    """An empty folder to work in, on that server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/.mlflow/mlflow.db")
    with prefect.settings.temporary_settings({prefect.settings.PREFECT_API_URL: server.api}):
        yield tmp_path


def registry(monkeypatch, **functions) -> None:
    """Puts functions in the place of flows/registry.py."""
    stand_in = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, "flows.registry", stand_in)
    monkeypatch.setattr(flows, "registry", stand_in, raising=False)


# --- nightly ----------------------------------------------------------------------------------------------------------


def test_a_night_takes_new_data_runs_what_they_touch_and_promotes(here, monkeypatch, server):
    tiny_project(here, {"package_model": {"cmd": "cp data/new package", "deps": ["data/new"], "outs": ["package"]}})
    (here / "elsewhere").write_text("monday")
    (here / "data").mkdir()
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "import-url", "-q", str(here / "elsewhere"), "data/new"], check=True)
    champions = []
    registry(monkeypatch, register=lambda root: "7", promote=lambda root, version: champions.append((str(root), version)))
    (here / "elsewhere").write_text("tuesday")

    first = nightly.nightly()

    assert first == {"ran": ["package_model"], "version": "7", "refusals": []}
    assert (here / "package").read_text() == "tuesday" and champions == [(".", "7")]
    assert nightly.nightly()["ran"] == []


def test_a_version_that_the_gate_refuses_is_told_and_is_no_failure(here, monkeypatch, server):
    tiny_project(here, {"package_model": {"cmd": "touch package", "outs": ["package"]}})

    def refuse(root, version):
        raise UserError("version 8 was not promoted beside champion 7:\n- psnr_hard is 20.1, the champion's 30.1")

    registry(monkeypatch, register=lambda root: "8", promote=refuse)
    done = nightly.nightly()
    assert "- psnr_hard is 20.1, the champion's 30.1" in done["refusals"]
    latest = server.runs()[-1]
    shown = server.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["champion"]}}, "sort": "CREATED_DESC"})
    assert "version 8 was not promoted" in shown[0]["data"] and "psnr_hard is 20.1" in shown[0]["data"]
    assert latest["state_type"] == "COMPLETED"


def test_a_pipeline_that_fails_registers_nothing(here, monkeypatch):
    tiny_project(here, {"package_model": {"cmd": "exit 2", "outs": ["package"]}})
    registry(monkeypatch, register=lambda root: pytest.fail("it was registered"))
    with pytest.raises(RuntimeError, match="stage package_model failed with code 2"):
        nightly.nightly()


def committed(folder: Path) -> list[str]:
    said = subprocess.run(["git", "log", "--format=%s"], cwd=folder, capture_output=True, text=True)
    return said.stdout.splitlines()


@pytest.fixture
def clone(tmp_path):
    """A committed project with an imported file, as a night finds it and then leaves it."""
    for name, text in {"dvc.lock": "1", "data/photos.dvc": "1", "params.yaml": "1"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    identity = ["-c", "user.name=test", "-c", "user.email=test"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "as it was"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_a_night_commits_what_it_made_and_nothing_of_anybody_else(clone):
    assert commit_all_of(nightly.is_of_a_run, "night", clone) is None
    (clone / "dvc.lock").write_text("2")
    (clone / "data/photos.dvc").write_text("2")
    (clone / "notes.txt").write_text("never seen by git")
    made = commit_all_of(nightly.is_of_a_run, "night", clone)
    assert made and committed(clone) == ["night", "as it was"] and changes(root=clone) == ["notes.txt"]

    (clone / "dvc.lock").write_text("3")
    (clone / "params.yaml").write_text("3")
    assert commit_all_of(nightly.is_of_a_run, "night", clone) is None
    assert committed(clone) == ["night", "as it was"] and changes("-uno", root=clone) == ["dvc.lock", "params.yaml"]


# --- draw -------------------------------------------------------------------------------------------------------------


def test_the_champion_draws_each_prompt(here, monkeypatch, package_folder):
    asked = []

    def fetch(alias, folder):
        asked.append((alias, str(folder)))
        return package_folder

    registry(monkeypatch, FETCHED=Path(".store/registry"), fetch=fetch)
    prompts = ["a small red star", "--help me"]
    grids = draw.draw(prompts, candidates=2, seed=3)
    assert asked == [("champion", ".store/registry")] and len(grids) == 2
    for grid in grids:
        assert Path(grid).is_file() and len(list(Path(grid).with_suffix("").glob("*.png"))) == 2


@pytest.mark.parametrize("prompts", [[], [" "], ["two\nlines"]])
def test_prompts_that_are_no_lines_of_text_are_refused(prompts):
    with pytest.raises(UserError, match="each prompt should be one line of text"):
        draw.draw.fn(prompts)


# --- sweep ------------------------------------------------------------------------------------------------------------


def test_values_are_combined_each_with_each():
    assert sweep.parsed(["a.b=1,0.5", "seed=0"]) == {"a.b": [1, 0.5], "seed": [0]}
    assert sweep.combinations({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


@pytest.mark.parametrize("grid", [{}, {"a": []}])
def test_a_sweep_over_nothing_is_refused(grid):
    with pytest.raises(UserError, match="a sweep needs values"):
        sweep.combinations(grid)
    with pytest.raises(UserError, match="more than 200"):
        sweep.combinations({"a": list(range(201))})


def test_a_knob_that_does_not_exist_is_refused_before_any_experiment(tmp_path):
    (tmp_path / "params.yaml").write_text("generator: {training: {steps: 1}}")
    sweep.check_knobs({"generator.training.steps": [1]}, tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"params\.yaml has no generator\.training\.step\."):
        sweep.check_knobs({"generator.training.step": [1]}, tmp_path / "params.yaml")


def test_a_sweep_compares_its_experiments_and_leaves_the_folder_as_it_was(here, monkeypatch):
    (here / "square.sh").write_text("x=$(cut -d' ' -f2 params.yaml); echo '{\"y\": '$((x * x))'}' > m.json")
    tiny_project(here, {"evaluate": {"cmd": "sh square.sh", "params": ["x"], "metrics": [{"m.json": {"cache": False}}]}})
    (here / "params.yaml").write_text("x: 1\n")
    (here / ".gitignore").write_text("/.mlflow/\n/.prefect/\n")
    for word in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{word}_NAME", "a")
        monkeypatch.setenv(f"GIT_{word}_EMAIL", "a@b")
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "commit", "-qm", "all"], check=True)

    rows = sweep.sweep({"x": [2, 3]})

    assert [(row["x"], row["y"]) for row in rows] == [(2, 4), (3, 9)]
    assert yaml.safe_load((here / "params.yaml").read_text()) == {"x": 1} and not (here / "m.json").exists()
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{here}/.mlflow/mlflow.db")
    found = client.search_runs(["1"], "tags.sweep LIKE 'sweep-%'")
    assert {run.data.params["x"]: run.data.metrics for run in found} == {"2": {"y": 4.0}, "3": {"y": 9.0}}


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_says_what_runs_what_is_champion_and_what_is_stale(here, monkeypatch):
    tiny_project(here, {"first": {"cmd": "touch a", "outs": ["a"]}})
    registry(monkeypatch, show=lambda: ["version 2  sound @champion", "version 1  sound"])
    monkeypatch.setattr(status.gpu, "visible", lambda: ["0"])
    screen = status.status()
    assert "server    http://127.0.0.1:" in screen and "nothing runs" in screen
    assert "GPU 0 is free" in screen and "champion  version 2  sound @champion" in screen and "version 1" not in screen
    assert "stages    stale: first" in screen and "figures   none yet" in screen


def test_status_needs_no_server_and_says_so(here, monkeypatch):
    def nothing():
        raise UserError("the registry does not answer")

    registry(monkeypatch, show=nothing)
    silent = "http://127.0.0.1:9/api"
    for url, told in (("", "none (PREFECT_API_URL is not set)"), (silent, f"{silent} does not answer (ConnectError)")):
        with prefect.settings.temporary_settings({prefect.settings.PREFECT_API_URL: url}):
            assert told in status.status()
    assert "champion  the registry does not answer" in status.status()
    assert "stages    unknown: " in status.status()
