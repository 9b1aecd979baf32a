"""Prefect flows over the DVC graph: when and where, never what. `dvc.yaml` stays the only graph."""
