"""Parts of the pipeline flow without Prefect or DVC: graph order, retries, images of an artifact."""

import threading

import pytest

from flows import prefect_artifacts
from flows.dvc import graph, repro
from flows.dvc.graph import run_graph
from thousandwords.core.errors import UserError


def test_a_stage_comes_after_all_that_it_needs():
    ordered = {"a": [], "b": ["a"], "c": ["a", "b"]}
    assert graph.topological_order({"c": ["b", "a"], "b": ["a"], "a": []}) == ordered


def test_a_target_includes_what_it_needs_and_an_unknown_one_is_named():
    whole = graph.Graph({"a": [], "b": ["a"], "c": ["a"]}, frozenset({"a", "c"}))
    assert whole.part(["b"]) == graph.Graph({"a": [], "b": ["a"]}, frozenset({"a"}))
    with pytest.raises(UserError, match=r"^dvc\.yaml has no stage 'd'\. It has: a, b, c$"):
        whole.part(["d"])


DIAMOND = {"first": [], "left": ["first"], "right": ["first"], "last": ["left", "right"]}


def recorded(calls: list[str], unchanged: tuple[str, ...] = (), failing: tuple[str, ...] = ()):
    """A `run_stage` that notes its calls."""

    def run_stage(stage: str) -> str:
        calls.append(stage)
        if stage in failing:
            raise repro.StageFailed(f"stage {stage} failed")
        return repro.CACHED if stage in unchanged else repro.RAN

    return run_stage


def test_a_stage_runs_if_it_is_stale_or_one_that_it_needs_ran():
    calls: list[str] = []
    whole = graph.Graph(DIAMOND, frozenset({"right"}))
    results = run_graph(whole, recorded(calls), parallel=2)
    assert results == {"first": "unchanged", "left": "unchanged", "right": "ran", "last": "ran"}
    assert calls == ["right", "last"]
    calls.clear()
    results = run_graph(whole, recorded(calls, unchanged=("right",)), parallel=2)
    assert set(results.values()) == {"unchanged"} and calls == ["right"]


def test_results_are_in_the_order_of_the_graph_whatever_ends_first():
    right_ended = threading.Event()

    def run_stage(stage: str) -> str:
        if stage == "left":
            assert right_ended.wait(20)
        elif stage == "right":
            right_ended.set()
        return repro.RAN

    assert list(run_graph(graph.Graph(DIAMOND, frozenset(DIAMOND)), run_stage, parallel=2)) == list(DIAMOND)


def test_a_failure_stops_the_run_or_only_the_stages_that_need_it():
    calls, stops = [], []
    whole = graph.Graph(DIAMOND, frozenset(DIAMOND))
    with pytest.raises(RuntimeError, match="^stage left failed$"):
        run_graph(whole, recorded(calls, failing=("left",)), parallel=1)
    assert calls == ["first", "left", "right"]
    calls.clear()
    with pytest.raises(repro.StageFailed):
        run_graph(whole, recorded(calls, failing=("left",)), 1, lambda: stops.append(1), fail_fast=True)
    assert calls == ["first", "left"] and stops == [1]


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
