"""Set before any tool is imported: no telemetry, a quiet git, threads that wait without spinning. Imported for what it does."""
import os

QUIET = {
    "DO_NOT_TRACK": "true",  # MLflow accepts the word `true` only
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with a server, two lines for each run that ends
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GIT_PYTHON_REFRESH": "quiet",
    # A thread that spins while it waits keeps its core from the thread it waits for: beside one other busy process a step of
    # CLIP took nine times as long. One that sleeps at once wakes late: a step of the transformer took a third longer. So it
    # spins for some microseconds (GNU's OpenMP, which goes before the policy), or not at all (others).
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "PASSIVE",
}
for name, value in QUIET.items():
    os.environ.setdefault(name, value)
