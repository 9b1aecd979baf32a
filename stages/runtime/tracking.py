"""MLflow: one parent run per pipeline run, a child run per stage.

The parent run has what a user looks for first: all settings, the headline figures, the data, images, the report. The
children have the curves and every figure. No stage depends on what is logged here: DVC is the source of truth about
data, MLflow only logs. A stage's run has its record as a tag, and the digest of the outputs that it is about: another
clone, which DVC gave these outputs, finds how they were made.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from PIL import Image

from thousandwords.core.errors import UserError
from thousandwords.core.files import DISK_FULL_ERRNOS
from thousandwords.core.manifest import DamagedArtefact, read_manifest
from thousandwords.core.params import flatten
from thousandwords.core.run_records import output_paths, outputs_digest, read_records

EXPERIMENT = "thousandwords"
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
REQUIRED = "THOUSANDWORDS_TRACKING"  # "required": a stage that cannot be tracked stops
PAIRS, RESULTS = Path("data/pairs"), Path("results")
MAX_PARAMS, MAX_PARAM_LENGTH = 100, 6000  # in a call, and characters of a value: MLflow's limits
MAX_SAMPLES = 8  # images of each training, evenly over its steps
# a short stage ends before the first; a sample takes some milliseconds
SECONDS_BEFORE_SYSTEM_METRICS, SECONDS_BETWEEN_SYSTEM_METRICS = 30.0, 15.0
# of MLflow's database: they hold whole paths, which are wrong in a copy of the project
PATH_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def open_tracker(stage_name: str, params: dict) -> Tracker | NoTracker:
    """The tracker of a stage; one that logs nothing if MLflow cannot be used."""
    return if_usable(stage_name, lambda: Tracker(stage_name, params)) or NoTracker()


def if_usable(program: str, use: Callable[[], Any], root: Path = Path(".")) -> Any:
    """What `use` returns; None, after a warning, if MLflow cannot be used. Raises UserError if it is required."""
    uri = tracking_uri(root)
    try:
        _check_store(uri)
        return use()
    except Exception as error:
        if getattr(error, "errno", None) in DISK_FULL_ERRNOS:
            raise
        message = describe_unusable(uri, error, "Move that file away")
        if os.environ.get(REQUIRED) == "required":
            raise UserError(message) from error
        print(f"{program}: {message}; the work goes on without tracking", file=sys.stderr, flush=True)
        return None


def describe_unusable(uri: str, error: Exception, fix_of_file: str) -> str:
    """One sentence: which store cannot be used, why, and the fix, which differs for a server and for a file here."""
    reason = " ".join(str(error).split("[SQL", 1)[0].split())[:200]
    is_server = os.environ.get("MLFLOW_TRACKING_URI")
    fix = "Start it, or unset MLFLOW_TRACKING_URI" if is_server else fix_of_file
    return f"MLflow at {uri} cannot be used ({reason}). {fix}"


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
        self.parent_id, self.is_first = _parent_run(self.client, self.experiment, pipeline_key())
        tags = {"mlflow.parentRunId": self.parent_id, "mlflow.runName": stage_name, "stage": stage_name}
        self.run_id = self.client.create_run(self.experiment, tags=tags | _git_tags()).info.run_id
        self.stage_name, self.warned = stage_name, False
        self._try(log_params, self.client, self.run_id, params)
        self.system_monitor = None
        self.system_timer = threading.Timer(SECONDS_BEFORE_SYSTEM_METRICS, self._try, [self._monitor_system])
        if stage_name.startswith("train_"):
            self.system_timer.daemon = True
            self.system_timer.start()

    def log_pipeline_params(self, params: dict) -> None:
        """Log all settings to the pipeline's run, once, and as a file too: there no value is cut."""
        if self.is_first:
            self._try(log_params, self.client, self.parent_id, params)
            self._try(self.client.log_dict, self.parent_id, params, "params.yaml")

    def summarize_pipeline(self) -> None:
        """Log to the pipeline's run what its page should show, once this stage has finished: the data, and after
        `evaluate` the headline figures, images and the report."""
        if self.stage_name != "check_params":  # it runs while the pairs of an earlier run may still be there
            self._try(self._log_dataset)
        if self.stage_name == "evaluate":
            self._try(self._log_results)

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
        self._try(log_metrics, self.client, self.run_id, values, step)

    def files(self, paths: tuple[Path, ...], folder: str | None = None) -> None:
        for path in paths:
            self._try(self.client.log_artifact, self.run_id, str(path), folder)

    def tags(self, values: dict[str, str]) -> None:
        """Set tags of this run and of the pipeline's."""
        for name, value in values.items():
            for run_id in (self.run_id, self.parent_id):
                self._try(self.client.set_tag, run_id, name, value)

    def record(self, record: dict) -> None:
        """Keep the record of this run where `find_records` looks for it."""
        if record["outputs"]:
            for name, value in (("record", json.dumps(record)), ("outputs", record["outputs"])):
                self._try(self.client.set_tag, self.run_id, name, value)

    def end(self, status: str) -> None:
        self.system_timer.cancel()
        if self.system_timer.is_alive():  # it is starting the monitor
            self.system_timer.join()
        if self.system_monitor:
            self._try(self.system_monitor.finish)
        self._try(self.client.set_terminated, self.run_id, status)
        self._try(self.client.set_terminated, self.parent_id, status)

    def _monitor_system(self) -> None:
        # late: a short stage should not pay for the import
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        options = {"resume_logging": True, "tracking_uri": tracking_uri()}
        self.system_monitor = SystemMetricsMonitor(self.run_id, SECONDS_BETWEEN_SYSTEM_METRICS, **options)
        self.system_monitor.start()

    def _log_dataset(self) -> None:
        with contextlib.suppress(DamagedArtefact):  # no pairs here: a stage with another folder of pairs
            dataset = _dataset(data_metadata(read_manifest(PAIRS, verify=False)))
            self.client.log_inputs(self.parent_id, [dataset])

    def _log_results(self) -> None:
        log_headline(self.client, self.parent_id, RESULTS / "metrics.json")
        for path in (RESULTS / name for name in ("ranked/overview.png", "report.html", "runs.html")):
            if path.is_file():
                self.client.log_artifact(self.parent_id, str(path))
        for folder in sorted((RESULTS / "training").glob("*")):
            sheets = sorted(folder.glob("step-*.png"))
            for path in sheets[:: -max(1, -(-len(sheets) // MAX_SAMPLES))]:  # the last is one of them
                with Image.open(path) as image:
                    step = int(path.stem.removeprefix("step-"))
                    self.client.log_image(self.parent_id, image, key=f"samples/{folder.name}", step=step)

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


def find_records(root: Path = Path("."), stages: Iterable[str] | None = None) -> dict[str, dict]:
    """{stage: the record of the run that made its outputs here}, of these stages or of all in dvc.yaml.

    The record is the file here or, of outputs that came from DVC's cache or another clone, that of the newest MLflow run
    with the same outputs. A stage of which neither is known is left out.
    """
    names = list(stages or output_paths(root))
    records, uri = read_records(root, names), tracking_uri(root)
    digests = {stage: outputs_digest(stage, root) for stage in names if stage not in records}
    unknown = {stage: digest for stage, digest in digests.items() if digest}
    if unknown and (not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()):
        records |= if_usable("records", lambda: _search_records(uri, unknown), root) or {}
    return records


def _search_records(uri: str, outputs: dict[str, str]) -> dict[str, dict]:
    """The records of stages with these outputs, as far as MLflow has them."""
    mlflow_client, records = mlflow.MlflowClient(uri), {}
    experiment = mlflow_client.get_experiment_by_name(EXPERIMENT)
    if not experiment:
        return {}
    for stage, digest in outputs.items():
        query, newest = (
            f"tags.stage = '{stage}' and tags.outputs = '{digest}'",
            ["attributes.start_time DESC"],
        )
        runs = mlflow_client.search_runs([experiment.experiment_id], query, order_by=newest, max_results=1)
        if runs:
            records[stage] = json.loads(runs[0].data.tags["record"])
    return records


def log_params(client: mlflow.MlflowClient, run_id: str, params: dict) -> None:
    """Log settings by their dotted names. A value that is too long for MLflow ends with a note."""
    note = " ... (cut here: params.yaml of the pipeline's run has all of it)"
    flat = flatten(params).items()
    params = [Param(name, fit(str(value), MAX_PARAM_LENGTH, note)) for name, value in flat]
    for first in range(0, len(params), MAX_PARAMS):
        client.log_batch(run_id, params=params[first : first + MAX_PARAMS])


def log_metrics(client: mlflow.MlflowClient, run_id: str, values: dict[str, float], step: int = 0) -> None:
    now, names = int(time.time() * 1000), str.maketrans("/:", "..")
    points = [Metric(name.translate(names), float(value), now, step) for name, value in values.items()]
    client.log_batch(run_id, points)


def log_headline(client: mlflow.MlflowClient, run_id: str, metrics: Path) -> None:
    """Log the headline figures of a metrics.json."""
    from thousandwords.evaluation.headline import headline  # late: it is in no checkpoint's fingerprint

    log_metrics(client, run_id, headline(json.loads(metrics.read_bytes())))


def fit(text: str, limit: int, note: str) -> str:
    """The text, or its beginning and the note, in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - len(note)] + note


def _dataset(data: dict) -> DatasetInput:
    """The pairs, from their `data_metadata`, as an input of a run: digest, number of pairs, source."""
    source = {key: "; ".join(origin[key] for origin in data["origins"]) for key in ("origin", "licence")}
    profile = {"num_rows": sum(data["splits"].values()), **data["splits"], "image_size": data["image_size"]}
    dataset = Dataset(
        name=data["source"],
        digest=data["fingerprint"][:12],
        source_type="local",
        source=json.dumps({"uri": source["origin"], "licence": source["licence"]}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def data_metadata(manifest: dict) -> dict:
    """Which images, how many, under which license, from the manifest of the pairs."""
    metadata, settings = manifest["facts"], manifest["facts"].get("settings", {})
    sources = settings.get("sources") or [{"source": metadata["source"], **settings}]
    return {
        "source": metadata["source"],
        "image_size": metadata["image_size"],
        "splits": metadata["counts"]["splits"],
        "origins": [_origin(source) for source in sources],
        "fingerprint": manifest["sha256"],
    }


def _origin(source: dict) -> dict[str, str]:
    if source["source"] == "scenes":
        return {"source": "scenes", "licence": "Apache-2.0", "origin": "drawn by this project"}
    path = source.get("path") or ""
    path = "" if Path(path).is_absolute() else path  # elsewhere on the machine: it stays private
    origin = source.get("origin") or source.get("url") or path or "not stated"
    return {"source": source["source"], "licence": source.get("licence") or "not stated", "origin": origin}


def log_experiment(title: str, name: str, values: dict[str, object], metrics: dict[str, float]) -> None:
    """Log an experiment of a sweep to its parent run, so that MLflow's own page compares them."""
    mlflow_client = client()
    run_id, is_new = _parent_run(mlflow_client, experiment_of(mlflow_client), name)
    mlflow_client.set_tag(run_id, "sweep", title)
    log_metrics(mlflow_client, run_id, metrics)
    if is_new:  # no stage ran, so none has logged the settings
        log_params(mlflow_client, run_id, values)
    mlflow_client.set_terminated(run_id)


def repair_moved_store(root: Path = Path(".")) -> None:
    """Point the records of the local database to this folder if the project was moved or copied.

    MLflow records whole paths: without this, a copy would write its files into the project it was copied from.
    """
    database = (root / ".mlflow/mlflow.db").resolve()
    if tracking_uri(root) != f"sqlite:///{database}" or not database.is_file():
        return
    here, query = f"{root.resolve().as_uri()}/", "SELECT artifact_location FROM experiments WHERE name = ?"
    with (
        contextlib.suppress(sqlite3.Error),  # an empty database, or one that MLflow reports as damaged
        contextlib.closing(sqlite3.connect(database, timeout=60)) as connection,
        connection,
    ):
        (location,) = connection.execute(query, (EXPERIMENT,)).fetchone() or ("",)
        before, found, _ = location.rpartition(".mlflow/artifacts")
        if not found or before == here:
            return
        for table, columns in PATH_COLUMNS.items():
            for column in columns:
                update = (
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE instr({column}, ?) = 1"
                )
                connection.execute(update, (here, len(before) + 1, before))
        folder = urllib.request.url2pathname(before.removeprefix("file://"))
        found = f"this project was moved or copied from {folder}"
        print(
            f"tracking: {found}, so its MLflow records now point to the files in this folder", file=sys.stderr
        )


def experiment_of(client: mlflow.MlflowClient, root: Path = Path(".")) -> str:
    """The id of the experiment, created if missing; with the local database its files lie beside it."""
    repair_moved_store(root)
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


def _parent_run(client: mlflow.MlflowClient, experiment: str, key: str) -> tuple[str, bool]:
    """The run of a pipeline run, and whether it is new."""
    runs = client.search_runs([experiment], filter_string=f"tags.pipeline = '{key}'", max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return runs[0].info.run_id, False
    name = key if key.startswith("sweep-") else time.strftime("pipeline %Y-%m-%d %H:%M:%S")
    tags = {"dvc.experiment": "DVC_EXP_NAME", "prefect.flow_run": "THOUSANDWORDS_FLOW_RUN"}
    tags = {tag: os.environ[variable] for tag, variable in tags.items() if os.environ.get(variable)}
    tags |= {"pipeline": key, "mlflow.runName": name}
    return client.create_run(experiment, tags=tags | _git_tags()).info.run_id, True


def _git_tags() -> dict[str, str]:
    commit = git_revision().get("commit", "none")
    return {"git.commit": commit, "mlflow.source.git.commit": commit}  # MLflow's pages show the second


def git_revision(root: Path = Path(".")) -> dict:
    """The current commit, and whether the working tree has changes; empty outside git."""
    options = {"cwd": root, "capture_output": True, "text": True}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, **options).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": head, "is_dirty": bool(dirty.strip())}
