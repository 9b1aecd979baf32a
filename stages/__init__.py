"""One thin module per DVC stage: read, call the library, write. Run as `python -m stages.<name> --help`."""
from stages import _environment  # noqa: F401  first of all: it sets what torch and mlflow read when they are imported
