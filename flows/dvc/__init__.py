"""The graph of stages, read from DVC, and `dvc repro` of one stage."""
