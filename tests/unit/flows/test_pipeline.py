"""Parts of the pipeline flow without Prefect: graph order and edges, names of runs, retries, images of an artifact."""

import shutil
import threading

import pytest
from dvc.repo import Repo

from flows import prefect_artifacts, run_name
from flows.dvc import graph, repro
from flows.dvc.graph import run_graph
from tests.helpers.paths import ROOT
from thousandwords.core.errors import UserError
from thousandwords.planning.presets import preset_text


def test_a_graph_is_in_the_order_of_its_needs_and_its_part_has_what_a_target_needs():
    ordered = {"a": [], "b": ["a"], "c": ["a", "b"]}
    assert graph.topological_order({"c": ["b", "a"], "b": ["a"], "a": []}) == ordered
    whole = graph.Graph({"a": [], "b": ["a"], "c": ["a"]}, frozenset({"a", "c"}))
    assert whole.part(["b"]) == graph.Graph({"a": [], "b": ["a"]}, frozenset({"a"}))
    with pytest.raises(UserError, match=r"^dvc\.yaml has no stage 'd'\. It has: a, b, c$"):
        whole.part(["d"])


def test_an_edge_comes_from_the_nearest_stages_before_that_ran():
    """The graph of dvc.yaml has 49 dependencies between stages; 17 edges show the same order."""
    whole = graph.Graph({"a": [], "b": ["a"], "c": ["a", "b"], "d": ["a", "b", "c"]}, frozenset())
    assert whole.nearest("d", ["a", "b", "c"]) == ["c"]
    assert whole.nearest("d", ["a", "b"]) == ["b"] and whole.nearest("a", ["b"]) == []
    with Repo(ROOT) as repo:
        needs = {stage.addressing: [] for stage in repo.index.graph}
        for stage in repo.index.graph:
            needs[stage.addressing] = [each.addressing for each in repo.index.graph.successors(stage)]
    whole = graph.Graph(graph.topological_order(needs), frozenset())
    assert sum(map(len, needs.values())) == 49
    assert sum(len(whole.nearest(name, list(needs))) for name in needs) == 17


@pytest.mark.parametrize(
    ("params", "changed", "name"),
    [
        (preset_text("smoke", ROOT / "presets"), [], "smoke 8031f78 seed 0"),
        ("data: {source: folder, path: data/own/cats}\nseed: 7\n", ["a.py"], "cats 8031f78+ seed 7"),
        ("data: {source: scenes, path: data/own}\nseed: 7\n", [], "scenes 8031f78 seed 7"),
        ("data: [", [], "unknown settings 8031f78 seed unknown"),
    ],
)
def test_a_run_is_named_by_its_settings_its_code_and_its_seed(tmp_path, monkeypatch, params, changed, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "params.yaml").write_text(params)
    monkeypatch.setattr(run_name, "git", lambda *_: "8031f78")
    monkeypatch.setattr(run_name, "changed_files", lambda *_: changed)
    assert run_name.run_name() == name


def test_results_are_in_the_order_of_the_graph_whatever_ends_first():
    right_ended = threading.Event()

    def run_stage(stage: str) -> str:
        if stage == "right":
            right_ended.set()
        assert stage != "left" or right_ended.wait(20)
        return repro.RAN

    needs = {"first": [], "left": ["first"], "right": ["first"], "last": ["left", "right"]}
    assert list(run_graph(graph.Graph(needs, frozenset(needs)), run_stage, parallel=2)) == list(needs)


@pytest.mark.parametrize(
    ("output", "code", "error"),
    [
        ("failed to run: python, exited with 2", 255, repro.PermanentStageFailure),
        ("failed to run: python, exited with 143", 255, repro.PermanentStageFailure),
        ("", 143, repro.PermanentStageFailure),
        ("failed to run: python, exited with 1", 255, repro.StageFailed),
        ("failed to run: python, exited with -9", 255, repro.StageFailed),
        ("", 255, repro.StageFailed),
    ],
)
def test_a_stage_that_a_user_has_to_fix_or_has_stopped_is_not_retried(output, code, error):
    assert type(repro.stage_error("train", code, ["...", output])) is error


def test_images_over_the_size_limit_are_left_out_and_their_names_are_not_markup(tmp_path, monkeypatch):
    monkeypatch.setattr(prefect_artifacts, "MAX_BYTES", 10)
    for name, size in (("overview.png", 4), ("000-<b>.png", 4), ("001.png", 4)):
        (tmp_path / name).write_bytes(b"x" * size)
    grids = prefect_artifacts.list_grids(tmp_path)
    assert [path.name for path in grids] == ["overview.png", "000-<b>.png"]
    assert "<b>" not in prefect_artifacts.image_page(grids)
