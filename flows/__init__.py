"""Prefect flows over the DVC graph. They decide when and where a stage runs.

`dvc.yaml` alone decides what runs.
"""

from flows import environment  # noqa: F401  before any module here imports prefect, which reads it once
