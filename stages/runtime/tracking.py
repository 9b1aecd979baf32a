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
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.entities import Metric, Param, RunTag

from thousandwords.core.errors import UserError
from thousandwords.core.files import DISK_FULL_ERRNOS
from thousandwords.core.params import flatten

EXPERIMENT = "thousandwords"
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
REQUIRED = "THOUSANDWORDS_TRACKING"  # "required": a stage that cannot be tracked stops


def open_tracker(stage_name: str, params: dict) -> Tracker | NoTracker:
    """The tracker of a stage; one that logs nothing if MLflow cannot be used."""
    return if_usable(stage_name, lambda: Tracker(stage_name, params)) or NoTracker()


def if_usable(program: str, use: Callable[[], Any]) -> Any:
    """What `use` returns; None, after a warning, if MLflow cannot be used. Raises UserError if it is required."""
    try:
        _check_store(tracking_uri())
        return use()
    except Exception as error:
        if getattr(error, "errno", None) in DISK_FULL_ERRNOS:
            raise
        reason = " ".join(str(error).split("[SQL", 1)[0].split())[:200]
        fix = "Start it, or unset MLFLOW_TRACKING_URI"
        fix = fix if os.environ.get("MLFLOW_TRACKING_URI") else "Move that file away"
        message = f"MLflow at {tracking_uri()} cannot be used ({reason}). {fix}"
        if os.environ.get(REQUIRED) == "required":
            raise UserError(message) from error
        print(f"{program}: {message}; the work goes on without tracking", file=sys.stderr, flush=True)
        return None


def _check_store(uri: str) -> None:
    """Raise what is wrong with a database or a server at once; MLflow itself tries again for minutes."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
    elif uri.startswith("http"):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10) as answer:
                is_mlflow = answer.read(3) == b"OK"
        except urllib.error.HTTPError as error:
            is_mlflow = error.code in (401, 403)  # MLflow's client has the password
        if not is_mlflow:
            raise ValueError("the server there is not MLflow")


class Tracker:
    """The MLflow run of a stage, a child of the pipeline's run. An error of MLflow never stops the work."""

    def __init__(self, stage_name: str, params: dict) -> None:
        self.client = client()
        self.experiment = experiment_of(self.client)
        self.parent_id = _parent_run(self.client, self.experiment, pipeline_key())
        tags = {"mlflow.parentRunId": self.parent_id, "mlflow.runName": stage_name, "stage": stage_name}
        self.run_id = self.client.create_run(self.experiment, tags=tags).info.run_id
        self.stage_name, self.warned = stage_name, False
        self._try(self._log_params, params)

    def resume(self, run_id: str | None) -> None:
        """Continue the run of an interrupted execution of the same work, and delete the one just started."""
        if run_id in (None, self.run_id):
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

    def files(self, paths: tuple[Path, ...], folder: str | None = None) -> None:
        for path in paths:
            self._try(self.client.log_artifact, self.run_id, str(path), folder)

    def tags(self, values: dict[str, str]) -> None:
        """Set tags of this run and of the pipeline's."""
        for name, value in values.items():
            for run_id in (self.run_id, self.parent_id):
                self._try(self.client.set_tag, run_id, name, value)

    def end(self, status: str) -> None:
        self._try(self.client.set_terminated, self.run_id, status)
        self._try(self.client.set_terminated, self.parent_id, status)

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
    """Logs nothing: of several processes that train together only the first logs."""

    run_id = parent_id = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values: None


def tracking_uri(root: Path = Path(".")) -> str:
    """MLFLOW_TRACKING_URI, or a database in this project's folder; absolute, whatever the cwd."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / '.mlflow').resolve()}/mlflow.db"


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri())


def log_experiment(title: str, name: str, values: dict[str, object], metrics: dict[str, float]) -> None:
    """Log an experiment of a sweep to its parent run, so that MLflow's own page compares them."""
    mlflow_client = client()
    run_id = _parent_run(mlflow_client, experiment_of(mlflow_client), name)
    mlflow_client.set_tag(run_id, "sweep", title)
    now = int(time.time() * 1000)
    names = {key: key.replace("/", ".").replace(":", ".") for key in metrics}
    points = [Metric(names[key], value, now, 0) for key, value in metrics.items()]
    mlflow_client.log_batch(run_id, points, [Param(setting, str(value)) for setting, value in values.items()])
    mlflow_client.set_terminated(run_id)


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
    """One name per pipeline run: THOUSANDWORDS_PIPELINE, else the `dvc` process above this one."""
    if key := os.environ.get("THOUSANDWORDS_PIPELINE"):
        return key
    for ancestor in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if any(Path(argument).name == "dvc" for argument in ancestor.cmdline()[:3]):
                return f"dvc-{ancestor.pid}-{int(ancestor.create_time())}"
    return f"single-{os.getpid()}-{int(time.time())}"


def _parent_run(client: mlflow.MlflowClient, experiment: str, key: str) -> str:
    runs = client.search_runs([experiment], filter_string=f"tags.pipeline = '{key}'", max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id
    name = key if key.startswith("sweep-") else time.strftime("pipeline %Y-%m-%d %H:%M:%S")
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
