"""The pipeline flow on a real Prefect server and small DVC projects: runs, retries, artifacts."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from flows import pipeline
from flows.dvc import graph
from tests.helpers.prefect_server import Server, run, tiny_project


def concatenate(*names: str, out: str, seconds: float = 0) -> dict:
    return {"cmd": f"sleep {seconds}; cat {' '.join(names)} > {out}", "deps": list(names), "outs": [out]}


def diamond(seconds: float = 0) -> dict[str, dict]:
    sides = {
        name: concatenate("a", out=out, seconds=seconds) for name, out in (("left", "b"), ("right", "c"))
    }
    return {"first": {"cmd": "echo 1 > a", "outs": ["a"]}, **sides, "last": concatenate("b", "c", out="d")}


def repro(project: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "-q"], cwd=project, capture_output=True, text=True
    )


def test_stale_stages_are_those_that_dvc_reports(tmp_path, monkeypatch):
    project = tiny_project(tmp_path, diamond())
    monkeypatch.chdir(project)
    assert graph.read_graph().stale == {"first", "left", "right", "last"}
    assert repro(project).returncode == 0
    assert graph.read_graph().stale == frozenset()
    (project / "c").write_text("another")
    assert graph.read_graph().stale == {"right", "last"}


def test_the_flow_runs_what_changed_publishes_it_and_then_finds_nothing_to_do(tmp_path, server):
    metrics = json.dumps({"generator": {"loss": 1.5}})
    write = f"mkdir -p results && echo '{metrics}' > results/metrics.json && cat d >> /dev/null"
    stages = {
        **diamond(seconds=2),
        "evaluate": {"cmd": write, "deps": ["d"], "outs": ["results/metrics.json"]},
    }
    project = tiny_project(tmp_path, stages)

    first = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (project / "d").read_text() == "1\n1\n"
    assert "evaluate | Running stage 'evaluate':" in first.stderr + first.stdout
    latest = server.runs()[-1]
    task_runs = server.task_runs(latest["id"])
    assert {name: task_run["state_name"] for name, task_run in task_runs.items()} == dict.fromkeys(
        stages, "Completed"
    )
    artifacts = server.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [latest["id"]]}}})
    assert [json.loads(artifact["data"]) for artifact in artifacts if artifact["key"] == "metrics"] == [
        [{"figure": "generator.loss", "value": 1.5}]
    ]
    assert any("left | " in line for line in server.lines(latest["id"]))

    sides = [task_runs[name] for name in ("left", "right")]
    begins, ends = (
        [datetime.fromisoformat(task_run[key]) for task_run in sides] for key in ("start_time", "end_time")
    )
    assert (max(ends) - min(begins)).total_seconds() < 0.65 * sum(
        task_run["total_run_time"] for task_run in sides
    )

    second = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    output = second.stdout + second.stderr
    assert second.returncode == 0 and output.count("| unchanged") == 5 and "Running stage" not in output
    assert server.task_runs(server.runs()[-1]["id"]) == {}


def test_an_unchanged_stage_that_waits_for_no_other_is_no_task(tmp_path, monkeypatch):
    project = tiny_project(tmp_path, diamond())
    repro(project)
    (project / "c").write_text("another")
    submitted = {}

    class Task:
        def __init__(self, stage):
            self.stage = stage

        def submit(self, stage, is_stale, gpus, parallel, needs):
            submitted[stage] = (is_stale, needs)
            return f"result of {stage}"

    monkeypatch.chdir(project)
    monkeypatch.setattr(pipeline, "stage_task", lambda stage, place: Task(stage))
    monkeypatch.setattr(pipeline, "collect_results", lambda futures: dict.fromkeys(futures, "unchanged"))
    monkeypatch.setattr(pipeline, "get_run_logger", logging.getLogger)
    monkeypatch.setenv("THOUSANDWORDS_PIPELINE", "a test")
    assert pipeline.run_graph(None) == dict.fromkeys(diamond(), "unchanged")
    assert submitted == {"right": (True, []), "last": (True, ["result of right"])}


TRY = "echo $(date +%s.%N) >> {name}.tries; {end}"


def test_a_stage_is_retried_as_often_as_its_table_says(tmp_path, server):
    """A stage that passes at last, one that always fails, and one that a user has to fix: 3, 4, 1 attempts."""
    ends = {
        "passing": "test $(wc -l < passing.tries) -ge 3 && touch passing",
        "failing": "exit 1",
        "permanent": "exit 2",
    }
    stages = {name: {"cmd": TRY.format(name=name, end=end), "outs": [name]} for name, end in ends.items()}
    stages["after"] = {"cmd": "cat failing > after", "deps": ["failing"], "outs": ["after"]}
    place = {"retries": 3, "retry_seconds": 0.5}
    project = tiny_project(tmp_path, stages, {"parallel": 3, "stages": dict.fromkeys(ends, place)})

    result = run(project, "flows.pipeline", PREFECT_API_URL=server.api)

    tries = {name: len((project / f"{name}.tries").read_text().split()) for name in ends}
    assert tries == {"passing": 3, "failing": 4, "permanent": 1}
    assert result.returncode == 1 and "pipeline: stage " in result.stderr and not (project / "after").exists()
    latest = server.runs()[-1]
    task_runs = server.task_runs(latest["id"])
    not_run = [task_run["state_name"] for name, task_run in task_runs.items() if name.startswith("after")]
    assert latest["state_type"] == "FAILED" and not_run == ["NotReady"]
    assert task_runs["passing"]["run_count"] == 3 and task_runs["failing"]["run_count"] == 4
    waits = planned_waits(server, task_runs["failing"])
    assert waits == pytest.approx([0.5, 1, 2], rel=0.2)


def planned_waits(server: Server, task_run: dict) -> list[float]:
    """Seconds from each failure to the retry that was planned for it."""
    moment = datetime.fromisoformat
    waiting = [state for state in server.states(task_run) if state["name"] == "AwaitingRetry"]
    return sorted(
        (moment(state["state_details"]["scheduled_time"]) - moment(state["timestamp"])).total_seconds()
        for state in waiting
    )
