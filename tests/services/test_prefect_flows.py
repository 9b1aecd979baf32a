"""The pipeline flow on a real Prefect server and small DVC projects: runs, retries, artifacts."""

import json
from datetime import datetime

import mlflow
import pytest

from tests.helpers.images import write
from tests.helpers.mlflow_server import new_mlflow_database
from tests.helpers.prefect_server import Server, run, tiny_project
from tests.pipeline.test_run_local import meeting


def test_the_flow_runs_what_changed_publishes_it_and_then_finds_nothing_to_do(tmp_path, server):
    new_mlflow_database(tmp_path / ".mlflow/mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/.mlflow/mlflow.db")
    experiment = client.create_experiment("thousandwords", artifact_location=str(tmp_path))
    parent, child = (client.create_run(experiment).info.run_id for _ in range(2))
    files = {
        "metrics.json": {"generator": {"val_loss_image": 1.5, "other": 2}},
        "runs/evaluate.json": {"run_id": child, "parent_run_id": parent},
        "report.html": "",
    }
    write(tmp_path / "made", {name: json.dumps(content) for name, content in files.items()})
    # of two stages before it, b and c, and a, which these need
    link = "echo $THOUSANDWORDS_FLOW_RUN > link"  # a tag of the MLflow run
    evaluate = {"cmd": f"cp -r made results && {link}", "deps": ["a", "d"], "outs": ["results", "link"]}
    stages = {**meeting(), "evaluate": evaluate}  # two of them end only if both run at the same time
    project = tiny_project(tmp_path, stages)

    first = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (project / "d").read_text() == "1\n1\n"
    assert "evaluate | Running stage 'evaluate':" in first.stderr + first.stdout
    latest = server.runs()[-1]
    task_runs = server.task_runs(latest["id"])
    states = {name: task_run["state_name"] for name, task_run in task_runs.items()}
    assert states == dict.fromkeys(stages, "Completed")
    names = {task_run["id"]: name for name, task_run in task_runs.items()}
    edges = {
        (names[upstream["id"]], name)
        for name, task_run in task_runs.items()
        for upstream in task_run["task_inputs"].get("wait_for", [])
    }
    assert edges == {
        ("first", "left"),
        ("first", "right"),
        ("left", "last"),
        ("right", "last"),
        ("last", "evaluate"),
    }
    assert latest["name"] == "unknown settings no commit seed unknown"

    found = server.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [latest["id"]]}}})
    artifacts = {artifact["key"]: artifact["data"] for artifact in found}
    assert json.loads(artifacts["headline"]) == [{"figure": "generator.val_loss_image", "value": 1.5}]
    runs = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs"
    assert (
        f"{runs}/{parent})" in artifacts["mlflow"]
        and f"{runs}/{child}/artifacts/report.html)" in artifacts["report"]
    )
    assert (project / "link").read_text().endswith(f"/flow-runs/flow-run/{latest['id']}\n")
    assert any("left | " in line for line in server.lines(latest["id"]))

    second = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
    output = second.stdout + second.stderr
    assert second.returncode == 0 and output.count("| unchanged") == 5 and "Running stage" not in output
    assert server.task_runs(server.runs()[-1]["id"]) == {}


TRY = "echo $(date +%s.%N) >> {name}.tries; {end}"


def test_a_stage_is_retried_as_often_as_its_table_says(tmp_path, server):
    """A stage that passes at last, one that always fails, and one that a user has to fix: 2, 3, 1 attempts."""
    ends = {
        "passing": "test $(wc -l < passing.tries) -ge 2 && touch passing",
        "failing": "exit 1",
        "permanent": "exit 2",
    }
    stages = {name: {"cmd": TRY.format(name=name, end=end), "outs": [name]} for name, end in ends.items()}
    stages["after"] = {"cmd": "cat failing > after", "deps": ["failing"], "outs": ["after"]}
    place = {"retries": 2, "retry_seconds": 0.5}
    project = tiny_project(tmp_path, stages, {"parallel": 3, "stages": dict.fromkeys(ends, place)})

    result = run(project, "flows.pipeline", PREFECT_API_URL=server.api)

    tries = {name: len((project / f"{name}.tries").read_text().split()) for name in ends}
    assert tries == {"passing": 2, "failing": 3, "permanent": 1}
    assert result.returncode == 1 and "pipeline: stage " in result.stderr and not (project / "after").exists()
    latest = server.runs()[-1]
    task_runs = server.task_runs(latest["id"])
    assert latest["state_type"] == "FAILED" and set(task_runs) == set(ends)
    assert task_runs["passing"]["run_count"] == 2 and task_runs["failing"]["run_count"] == 3
    waits = planned_waits(server, task_runs["failing"])
    assert waits == pytest.approx([0.5, 1], rel=0.2)


def planned_waits(server: Server, task_run: dict) -> list[float]:
    """Seconds from each failure to the retry that was planned for it."""
    moment = datetime.fromisoformat
    waiting = [state for state in server.states(task_run) if state["name"] == "AwaitingRetry"]
    return sorted(
        (moment(state["state_details"]["scheduled_time"]) - moment(state["timestamp"])).total_seconds()
        for state in waiting
    )
