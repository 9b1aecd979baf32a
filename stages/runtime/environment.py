"""Environment variables that are set before any tool is imported: no telemetry, and threads that wait without
spinning."""

import os

VARIABLES = {
    "DO_NOT_TRACK": "true",  # MLflow accepts the word `true` only
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with a server: two lines for each run that ends
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GIT_PYTHON_REFRESH": "quiet",
    # A waiting thread that spins blocks the core of the thread it waits for: beside another busy process a CLIP
    # step took nine times as long. One that sleeps at once wakes up late: a transformer step took a third longer.
    # So threads spin for some microseconds (GNU OpenMP, where this wins over the policy) or not at all (others).
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "PASSIVE",
}
for name, value in VARIABLES.items():
    os.environ.setdefault(name, value)
