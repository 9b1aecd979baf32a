"""MLflow: one parent run per pipeline run, a child run per stage. The only module of the stages that imports
mlflow.

No stage depends on what is logged here: DVC is the source of truth about data, MLflow only logs. The run id
is written to `results/runs/<stage>.json`, an output of the stage, so a stage that DVC skips or restores keeps
the run that made it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
from mlflow.entities import Metric, Param, RunTag

from thousandwords.core.errors import UserError
from thousandwords.core.params import flatten

EXPERIMENT = "thousandwords"
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)


class Tracker:
    """The MLflow run of a stage, a child of the pipeline's run. An error of MLflow never stops the work."""

    def __init__(self, stage_name: str, params: dict) -> None:
        self.client = mlflow.MlflowClient(tracking_uri())
        try:
            self.experiment = experiment_of(self.client)
            self.parent_id = _parent_run(self.client, self.experiment)
            self._start(stage_name)
        except mlflow.exceptions.MlflowException as error:
            raise UserError(
                f"MLflow at {tracking_uri()} does not answer: {str(error)[:200]}. Start it, or unset MLFLOW_TRACKING_URI"
            ) from error
        self.stage_name, self.warned = stage_name, False
        self._try(self._log_params, params)

    def resume(self, run_id: str) -> None:
        """Continue the run of an interrupted execution of the same work, and delete the one just started."""
        if run_id == self.run_id:
            return
        try:
            self.client.update_run(run_id, status="RUNNING")
        except mlflow.exceptions.MlflowException:
            return  # in another store, or deleted: keep the new run
        self._try(self.client.delete_run, self.run_id)
        self.run_id = run_id

    def metrics(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [Metric(name.replace("/", "."), float(value), now, step) for name, value in values.items()]
        self._try(self.client.log_batch, self.run_id, metrics=points)

    def files(self, paths: tuple[Path, ...]) -> None:
        for path in paths:
            self._try(self.client.log_artifact, self.run_id, str(path))

    def end(self, status: str) -> None:
        self._try(self.client.set_terminated, self.run_id, status)
        self._try(self.client.set_terminated, self.parent_id, status)

    def _start(self, stage_name: str) -> None:
        tags = {"mlflow.parentRunId": self.parent_id, "mlflow.runName": stage_name, "stage": stage_name}
        self.run_id = self.client.create_run(self.experiment, tags=tags).info.run_id

    def _log_params(self, params: dict) -> None:
        flat = [Param(name, str(value)[:500]) for name, value in flatten(params).items()]
        commit = git_revision().get("commit", "none")
        self.client.log_batch(self.run_id, params=flat[:100], tags=[RunTag("git.commit", commit)])

    def _try(self, call, *args, **named) -> None:
        try:
            call(*args, **named)
        except Exception as error:  # an error of MLflow must not stop the work
            if not self.warned:
                print(f"{self.stage_name}: MLflow failed to log ({error}); continuing", file=sys.stderr)
            self.warned = True


class NoTracker:
    """The tracker of a process that logs nothing: of several that train together only the first logs."""

    run_id = parent_id = None

    def resume(self, run_id: str) -> None: ...

    def metrics(self, values: dict[str, float], step: int) -> None: ...

    def files(self, paths: tuple[Path, ...]) -> None: ...

    def end(self, status: str) -> None: ...


def tracking_uri(root: Path = Path(".")) -> str:
    """MLFLOW_TRACKING_URI, or a database in this project's folder (absolute, so that it does not depend on
    the cwd)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / '.mlflow').resolve()}/mlflow.db"


def experiment_of(client: mlflow.MlflowClient, root: Path = Path(".")) -> str:
    """The id of the experiment, created if missing; with the local database its files lie beside it."""
    is_local = tracking_uri(root).startswith("sqlite:")
    if is_local:
        (root / ".mlflow").mkdir(exist_ok=True)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return experiment.experiment_id
    location = (root / ".mlflow/artifacts").resolve().as_uri() if is_local else None
    try:
        return client.create_experiment(EXPERIMENT, artifact_location=location)
    except mlflow.exceptions.MlflowException:  # another stage has just created it
        return client.get_experiment_by_name(EXPERIMENT).experiment_id


def pipeline_key() -> str:
    """One name per pipeline run: THOUSANDWORDS_PIPELINE, else the `dvc` process that all its stages descend
    from."""
    if key := os.environ.get("THOUSANDWORDS_PIPELINE"):
        return key
    for ancestor in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if any(Path(argument).name == "dvc" for argument in ancestor.cmdline()[:3]):
                return f"dvc-{ancestor.pid}-{int(ancestor.create_time())}"
    return f"single-{os.getpid()}-{int(time.time())}"


def _parent_run(client: mlflow.MlflowClient, experiment: str) -> str:
    key = pipeline_key()
    runs = client.search_runs([experiment], filter_string=f"tags.pipeline = '{key}'", max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id
    name = time.strftime("pipeline %Y-%m-%d %H:%M:%S")
    return client.create_run(experiment, tags={"pipeline": key, "mlflow.runName": name}).info.run_id


def git_revision(root: Path = Path(".")) -> dict:
    """The current commit, and whether the working tree has changes; empty outside git."""
    options = {"cwd": root, "capture_output": True, "text": True}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, **options).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": head, "is_dirty": bool(dirty.strip())}
