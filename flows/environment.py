"""Set before prefect is imported: quiet, a database of this project's own, heartbeats, no pickles. Imported for what it does.

The team's servers of this folder are used where they are up, unless the environment names others: what was started by `make
servers` is what `make workers`, `make deploy` and every flow of the folder talk to.
"""
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
    "PREFECT_WORKER_QUERY_SECONDS": "3",
    # a worker would otherwise start flows by `uv run`, in an environment that nobody locked
    "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")  # whoever names one of these has servers of their own


def servers_here() -> dict[str, str]:
    """The variables of this folder's servers (or SERVERS_FOLDER's), if those of Prefect and MLflow are up; else none."""
    if any(name in os.environ for name in SERVERS) or not Path(os.environ.get("SERVERS_FOLDER") or ".servers").is_dir():
        return {}
    from flows import processes, services
    from thousandwords.errors import UserError

    try:
        settings = services.read_settings(dict(os.environ))
        if all(processes.leader(settings.folder, name) for name in ("prefect", "mlflow")):
            return services.client_environment(settings, services.read_passwords(settings.folder))
    except (UserError, OSError):  # those who start them are told; the flows do without
        return {}
    return {}


for name, value in {**SETTINGS, **servers_here()}.items():
    os.environ.setdefault(name, value)
