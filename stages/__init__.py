"""One thin module per DVC stage: read, call the library, write. Run as `python -m stages.<name> --help`."""

# first: variables that torch and mlflow read on import, and what the stage reads, before its code is loaded
from stages.runtime import environment, inputs  # noqa: F401
