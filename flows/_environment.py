"""Set before prefect is imported: quiet, a database of this project's own, heartbeats. Imported for what it does."""
import os
from pathlib import Path

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_HOME": str(Path(".prefect").resolve()),  # this project's own database and settings
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 s is too short on a busy machine
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # what flows/watch.py counts on
    # a worker would otherwise start flows by `uv run`, in an environment that nobody locked
    "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
