"""python -m flows.status: what runs where, which version is champion, which stages are stale.

Works without a server.
"""

import contextlib
import json
from datetime import datetime
from pathlib import Path

import httpx
from dvc.exceptions import DvcException
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from flows.command_line import one_sentence
from flows.deploy import CPU_POOL, GPU_POOL
from flows.dvc.graph import read_graph
from flows.workers import gpu_lock
from flows.workers.__main__ import list_workers
from thousandwords.core.errors import UserError

MAX_RUNS = 5  # per state
ACTIVE = ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]
ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


def status() -> str:
    parts = {
        "server": server(),
        "gpus": gpu_lock.holders(gpu_lock.visible()) or ["none visible"],
        "workers": list_workers() or ["none was started in this folder"],
        "champion": champion(),
        "stages": stages(),
        "metrics": metrics(),
    }
    indented = {name: f"\n{'':10}".join(lines) for name, lines in parts.items()}
    return "\n".join(f"{name:10}{lines}" for name, lines in indented.items())


def server() -> list[str]:
    """Workers, active runs, the last that ended and the next on schedule, from Prefect."""
    url = PREFECT_API_URL.value()
    if not url:
        return ["none (PREFECT_API_URL is not set): `make flow` starts one for each run"]
    try:
        user, _, password = (PREFECT_API_AUTH_STRING.value() or "").partition(":")
        with httpx.Client(base_url=url, timeout=5, auth=(user, password) if password else None) as client:
            return [url, *pools(client), *runs(client)]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return [f"{url} does not answer ({type(error).__name__}). Start it: make servers"]


def pools(client: httpx.Client) -> list[str]:
    online = {}
    for pool in (CPU_POOL, GPU_POOL):
        answer = client.post(f"/work_pools/{pool}/workers/filter", json={})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ["there are no work pools yet. Run: make deploy"]
        workers = answer.raise_for_status().json()
        online[pool] = [worker["name"] for worker in workers if worker["status"] == "ONLINE"]
    if not any(online.values()):
        return ["no worker takes runs. Run: make workers"]
    return [f"pool {pool}: {', '.join(names) or 'no worker'}" for pool, names in online.items()]


def runs(client: httpx.Client) -> list[str]:
    active = find_runs(client, ACTIVE, "START_TIME_DESC")
    scheduled = find_runs(client, ["SCHEDULED"], "EXPECTED_START_TIME_ASC")
    ended = find_runs(client, ENDED, "END_TIME_DESC")
    return [
        *([describe_run(run, "start_time", "since") for run in active] or ["nothing runs"]),
        *(describe_run(run, "expected_start_time", "at") for run in scheduled[:2]),
        *(describe_run(run, "end_time", "at") for run in ended),
    ]


def find_runs(client: httpx.Client, states: list[str], order: str) -> list[dict]:
    """The first runs in one of these states, without subflows."""
    query = {"state": {"type": {"any_": states}}, "parent_task_run_id": {"is_null_": True}}
    request = {"flow_runs": query, "sort": order, "limit": MAX_RUNS}
    return client.post("/flow_runs/filter", json=request).raise_for_status().json()


def describe_run(run: dict, time_key: str, preposition: str) -> str:
    """ "FAILED     brave-otter at 21 Nov 03:00, thousandwords-gpu", and Prefect's message if it failed."""
    time = run[time_key]
    when = f" {preposition} {datetime.fromisoformat(time).astimezone():%d %b %H:%M}" if time else ""
    where = f", {run['work_pool_name']}" if run["work_pool_name"] else ""
    message = " ".join(((run["state"] or {}).get("message") or "").split())
    why = f": {message[:90]}" if run["state_type"] in ("FAILED", "CRASHED") and message else ""
    return f"{run['state_type']:10} {run['name']}{when}{where}{why}"


def champion() -> list[str]:
    from flows.registry.commands import show  # late: it loads MLflow

    try:
        return [line for line in show() if "@" in line] or ["none yet"]
    except UserError as error:
        return [str(error).splitlines()[0]]


def stages() -> list[str]:
    try:
        graph = read_graph()
    except (DvcException, UserError, OSError) as error:
        return [f"unknown: {' '.join(str(error).split())[:120]}"]
    stale = [name for name in graph.needs if name in graph.stale]
    return [f"stale: {', '.join(stale)}" if stale else f"all {len(graph.needs)} are up to date"]


def metrics() -> list[str]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(Path("results/metrics.json").read_bytes())
        psnr, best = values["reconstruction"]["psnr_hard"], values["clip_score"]["best"]
        text = f"{psnr:.2f} dB hard PSNR, CLIP score {best:.3f} for the best of {values['n']}"
        return [f"{text} (results/report.html)"]
    return ["none yet"]


def main() -> None:
    with one_sentence("status"):
        print(status())


if __name__ == "__main__":
    main()
