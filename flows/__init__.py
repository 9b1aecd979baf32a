"""Prefect flows over the DVC graph. They decide when and where a stage runs; `dvc.yaml` alone decides what runs.

Prefect reads its settings once, when it is imported, so they are set here: an own database, heartbeats, no
pickles. If the servers of this folder are running (`make servers`), they are used, unless the environment names
others.
"""

import os
import warnings
from pathlib import Path

from stages.runtime import environment  # noqa: F401  no telemetry

SETTINGS = {
    "PREFECT_HOME": str(Path(".prefect").resolve()),  # this project's own database and settings
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 s is too short on a busy machine
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # flows/workers/heartbeat.py depends on it
    "PREFECT_WORKER_QUERY_SECONDS": "3",
    # else a worker starts flows by `uv run`, in an environment without locked versions
    "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def local_servers_environment() -> dict[str, str]:
    """The variables of this folder's (or SERVERS_FOLDER's) servers if they are running. Else {}."""
    has_others = "PREFECT_API_URL" in os.environ or "MLFLOW_TRACKING_URI" in os.environ
    if has_others or not Path(os.environ.get("SERVERS_FOLDER") or ".servers").is_dir():
        return {}
    from flows.services import commands, specs
    from thousandwords.core.errors import UserError

    try:
        settings = specs.read_settings(dict(os.environ))
        if commands.is_running(settings.folder):
            return specs.client_environment(settings, specs.read_passwords(settings.folder))
    except (UserError, OSError):  # `make servers` reports these; the flows work without the servers
        pass
    return {}


# in a read-only project: each command says in one sentence whether it needs to write
warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
for name, value in {**SETTINGS, **local_servers_environment()}.items():
    os.environ.setdefault(name, value)
