"""Prefect flows over the DVC graph: when and where, never what. `dvc.yaml` stays the only graph."""
from flows import _environment  # noqa: F401  before any module here imports prefect, which reads it once
