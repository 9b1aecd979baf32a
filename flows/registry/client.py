"""The door to this project's MLflow: a client, and what MLflow has against a request as one sentence."""
from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from stages._run import tracking_uri
from thousandwords.errors import UserError

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_LOCK = threading.Lock()
_AT_WORK: list[str] = []  # an address per thread
_FOUND: dict[str, str | None] = {}  # what the environment held before the first of them came


@contextlib.contextmanager
def answering(root: Path) -> Iterator[mlflow.MlflowClient]:
    """A client of this project's registry; what MLflow has against it becomes a UserError."""
    uri = tracking_uri(Path(root))
    try:
        if uri.startswith("sqlite:"):
            (Path(root) / ".mlflow").mkdir(exist_ok=True)
        with _named_to_mlflow(uri):
            yield mlflow.MlflowClient(uri, uri)
    except MlflowException as error:
        raise UserError(
            f"MLflow at {uri} did not do what was asked: {str(error)[:300]}. Start it, or unset MLFLOW_TRACKING_URI"
        ) from error


@contextlib.contextmanager
def _named_to_mlflow(uri: str) -> Iterator[None]:
    """Where MLflow looks when it asks nobody, as artefact stores of a server do.

    MLflow writes that into the environment, too, where every stage that this process starts would find it: so it is taken back
    by the last of the threads that are at work here.
    """
    with _LOCK:
        if not _AT_WORK:
            _FOUND.update({name: os.environ.get(name) for name in VARIABLES})
        _AT_WORK.append(uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        with _LOCK:
            _AT_WORK.remove(uri)
            if not _AT_WORK:
                _put_back()


def _put_back() -> None:
    mlflow.set_tracking_uri(_FOUND["MLFLOW_TRACKING_URI"])
    mlflow.set_registry_uri(_FOUND["MLFLOW_REGISTRY_URI"])
    for name, value in _FOUND.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
