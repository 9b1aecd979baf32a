"""One thin module per DVC stage: read, call the library, write. Run as `python -m stages.<name> --help`."""

from stages.runtime import environment  # noqa: F401  first: it sets variables that torch and mlflow read on import
