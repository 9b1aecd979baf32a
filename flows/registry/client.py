"""A client of this project's MLflow, whose errors become UserErrors of one sentence."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from stages.runtime.tracking import tracking_uri
from thousandwords.core.errors import UserError
from thousandwords.core.files import translate_write_errors

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_lock = threading.Lock()
_active_uris: list[str] = []  # one per thread
_saved_environment: dict[str, str | None] = {}  # as it was before the first of these threads


@contextlib.contextmanager
def registry_client(root: Path) -> Iterator[mlflow.MlflowClient]:
    """A client of this project's registry; MLflow's errors become UserErrors."""
    uri = tracking_uri(Path(root))
    try:
        if uri.startswith("sqlite:"):
            with translate_write_errors(Path(root).resolve()):
                (Path(root) / ".mlflow").mkdir(exist_ok=True)
        with _global_uri(uri):
            yield mlflow.MlflowClient(uri, uri)
    except MlflowException as error:
        raise UserError(
            f"MLflow at {uri} rejected the request: {str(error)[:300]}. Start it, or unset MLFLOW_TRACKING_URI"
        ) from error


@contextlib.contextmanager
def _global_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global address, which a server's artifact stores use although a client was given one.

    MLflow writes it into the environment, too, and every stage that this process starts would read it there:
    so the last thread that leaves restores the environment.
    """
    with _lock:
        if not _active_uris:
            _saved_environment.update({name: os.environ.get(name) for name in VARIABLES})
        _active_uris.append(uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        with _lock:
            _active_uris.remove(uri)
            if not _active_uris:
                _restore_environment()


def _restore_environment() -> None:
    mlflow.set_tracking_uri(_saved_environment["MLFLOW_TRACKING_URI"])
    mlflow.set_registry_uri(_saved_environment["MLFLOW_REGISTRY_URI"])
    for name, value in _saved_environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
