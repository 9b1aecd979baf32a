"""The pipeline by Prefect: what runs, what is tried again, what is shown. On a real server and small DVC projects."""
from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from flows import artifacts, graph, pipeline
from flows import repro as one_stage
from flows.placement import Place, read_placement
from tests.orchestra import Server, run, tiny_project
from thousandwords.errors import UserError


def copy_of(*names: str, out: str, seconds: float = 0) -> dict:
    return {"cmd": f"sleep {seconds}; cat {' '.join(names)} > {out}", "deps": list(names), "outs": [out]}


def diamond(seconds: float = 0) -> dict[str, dict]:
    sides = {name: copy_of("a", out=out, seconds=seconds) for name, out in (("left", "b"), ("right", "c"))}
    return {"first": {"cmd": "echo 1 > a", "outs": ["a"]}, **sides, "last": copy_of("b", "c", out="d")}


# --- the graph --------------------------------------------------------------------------------------------------------


def test_a_stage_comes_after_all_that_it_needs():
    assert graph.ordered({"c": ["b", "a"], "b": ["a"], "a": []}) == {"a": [], "b": ["a"], "c": ["a", "b"]}


def test_a_target_brings_what_it_needs_and_an_unknown_one_is_named():
    whole = graph.Graph({"a": [], "b": ["a"], "c": ["a"]}, frozenset({"a", "c"}))
    assert whole.part(["b"]) == graph.Graph({"a": [], "b": ["a"]}, frozenset({"a"}))
    with pytest.raises(UserError, match=r"^dvc\.yaml has no stage 'd'\. It has: a, b, c$"):
        whole.part(["d"])


def repro(project: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=project, capture_output=True, text=True)


def test_what_has_changed_is_what_dvc_says(tmp_path, monkeypatch):
    project = tiny_project(tmp_path, diamond())
    monkeypatch.chdir(project)
    assert graph.read_graph().stale == {"first", "left", "right", "last"}
    assert repro(project).returncode == 0
    assert graph.read_graph().stale == frozenset()
    (project / "c").write_text("another")
    assert graph.read_graph().stale == {"right", "last"}


# --- placement --------------------------------------------------------------------------------------------------------


def test_the_table_of_this_project_names_its_stages():
    root = Path(__file__).parent.parent
    stages = list(yaml.safe_load((root / "dvc.yaml").read_text())["stages"])
    table = read_placement(stages, root / "flows/placement.yaml")
    assert table.of("train_generator").gpus == 1 and table.of("prepare_pairs") == Place(gpus=0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stages: {c: {gpus: 1}}", r"dvc\.yaml has no stage 'c'\. It has: a, b"),
        ("stages: {a: {gpu: 1}}", r"stages\.a has no key 'gpu'\. Did you mean 'gpus'\?"),
        ("stages: {a: {gpus: -1}}", "start at 0"),
        ("paralel: 3", r"has no key 'paralel'\. Did you mean 'parallel'\?"),
        ("parallel: 0", "one stage at least"),
        ("parallel: [", "while parsing"),
    ],
)
def test_a_wrong_table_is_told_with_its_place(tmp_path, text, told):
    (tmp_path / "placement.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        read_placement(["a", "b"], tmp_path / "placement.yaml")
    assert "placement.yaml" in str(caught.value)


def test_each_wait_is_twice_as_long_as_the_one_before():
    assert Place(retries=3, retry_seconds=2).delays == [2, 4, 8]


def test_what_somebody_has_to_mend_or_has_stopped_is_not_tried_again():
    def kind(words: str, code: int = 255) -> type:
        return type(one_stage.failure("train", code, ["...", words]))

    assert kind("failed to reproduce 'train': failed to run: python, exited with 2") is one_stage.StageRefused
    assert kind("failed to run: python, exited with 143") is one_stage.StageRefused
    assert kind("", code=143) is one_stage.StageRefused
    assert kind("failed to run: python, exited with 1") is one_stage.StageFailed
    assert kind("failed to run: python, exited with -9") is one_stage.StageFailed
    assert kind("") is one_stage.StageFailed


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_flow_runs_what_changed_shows_it_and_then_finds_nothing_to_do(tmp_path, server):
    figures = json.dumps({"generator": {"loss": 1.5}})
    write = f"mkdir -p results && echo '{figures}' > results/metrics.json && cat d >> /dev/null"
    stages = {**diamond(seconds=2), "evaluate": {"cmd": write, "deps": ["d"], "outs": ["results/metrics.json"]}}
    project = tiny_project(tmp_path, stages)

    first = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (project / "d").read_text() == "1\n1\n" and "evaluate | Running stage 'evaluate':" in first.stderr + first.stdout
    latest = server.runs()[-1]
    assert {name: one["state_name"] for name, one in server.task_runs(latest["id"]).items()} == dict.fromkeys(stages, "Completed")
    shown = server.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [latest["id"]]}}})
    assert [json.loads(one["data"]) for one in shown if one["key"] == "metrics"] == [[{"figure": "generator.loss", "value": 1.5}]]
    assert any("left | " in line for line in server.lines(latest["id"]))

    sides = [server.task_runs(latest["id"])[name] for name in ("left", "right")]
    begins, ends = ([datetime.fromisoformat(one[moment]) for one in sides] for moment in ("start_time", "end_time"))
    assert (max(ends) - min(begins)).total_seconds() < 0.65 * sum(one["total_run_time"] for one in sides)

    second = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    said = second.stdout + second.stderr
    assert second.returncode == 0 and said.count("| unchanged") == 5 and "Running stage" not in said
    assert server.task_runs(server.runs()[-1]["id"]) == {}


def test_what_has_nothing_to_do_and_waits_for_nobody_is_no_task(tmp_path, monkeypatch):
    project = tiny_project(tmp_path, diamond())
    repro(project)
    (project / "c").write_text("another")
    submitted = {}

    class Task:
        def __init__(self, stage):
            self.stage = stage

        def submit(self, stage, is_stale, gpus, parallel, before):
            submitted[stage] = (is_stale, before)
            return f"what became of {stage}"

    monkeypatch.chdir(project)
    monkeypatch.setattr(pipeline, "placed", lambda stage, place: Task(stage))
    monkeypatch.setattr(pipeline, "outcome", lambda running: dict.fromkeys(running, "unchanged"))
    monkeypatch.setattr(pipeline, "get_run_logger", logging.getLogger)
    monkeypatch.setenv("THOUSANDWORDS_PIPELINE", "a test")
    assert pipeline.run_graph(None) == dict.fromkeys(diamond(), "unchanged")
    assert submitted == {"right": (True, []), "last": (True, ["what became of right"])}


TRY = "echo $(date +%s.%N) >> {name}.tries; {ends}"


def test_a_stage_is_tried_again_as_often_as_its_table_says(tmp_path, server):
    """Two failures that pass, one that does not, and one that a user has to mend: 3, 4 and 1 attempts."""
    ends = {"passing": "test $(wc -l < passing.tries) -ge 3 && touch passing", "failing": "exit 1", "refused": "exit 2"}
    stages = {name: {"cmd": TRY.format(name=name, ends=end), "outs": [name]} for name, end in ends.items()}
    stages["after"] = {"cmd": "cat failing > after", "deps": ["failing"], "outs": ["after"]}
    place = {"retries": 3, "retry_seconds": 0.5}
    project = tiny_project(tmp_path, stages, {"parallel": 3, "stages": dict.fromkeys(ends, place)})

    done = run(project, "flows.pipeline", PREFECT_API_URL=server.api)

    tried = {name: [float(line) for line in (project / f"{name}.tries").read_text().split()] for name in ends}
    assert {name: len(times) for name, times in tried.items()} == {"passing": 3, "failing": 4, "refused": 1}
    assert done.returncode == 1 and "pipeline: stage " in done.stderr and not (project / "after").exists()
    latest = server.runs()[-1]
    tasks = server.task_runs(latest["id"])
    unrun = [one["state_name"] for name, one in tasks.items() if name.startswith("after")]
    assert latest["state_type"] == "FAILED" and unrun == ["NotReady"]
    assert tasks["passing"]["run_count"] == 3 and tasks["failing"]["run_count"] == 4
    waits = planned_waits(server, tasks["failing"])
    assert waits == pytest.approx([0.5, 1, 2], rel=0.2)


def planned_waits(server: Server, task_run: dict) -> list[float]:
    """Seconds from each failure to the retry that was planned for it."""
    moment = datetime.fromisoformat
    planned = [one for one in server.states(task_run) if one["name"] == "AwaitingRetry"]
    return sorted(
        (moment(one["state_details"]["scheduled_time"]) - moment(one["timestamp"])).total_seconds() for one in planned
    )


def test_pictures_that_do_not_fit_are_left_out_and_their_names_are_no_markup(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "LARGEST", 10)
    for name, size in (("overview.png", 4), ("000-<b>.png", 4), ("001.png", 4)):
        (tmp_path / name).write_bytes(b"x" * size)
    kept = artifacts.grids(tmp_path)
    assert [path.name for path in kept] == ["overview.png", "000-<b>.png"]
    assert "<b>" not in artifacts.page(kept)
