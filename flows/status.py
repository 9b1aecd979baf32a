"""python -m flows.status: on one screen what runs where, what is champion, what is stale. Needs no server, and says so."""
from __future__ import annotations

import contextlib
import importlib
import json
from datetime import datetime
from pathlib import Path

import httpx
from dvc.exceptions import DvcException
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from flows import gpu
from flows.bootstrap import CPU_POOL, GPU_POOL
from flows.graph import read_graph
from flows.workers import listed
from thousandwords.errors import UserError

SHOWN = 5  # runs of a kind
AT_WORK = ["RUNNING", "PENDING", "CANCELLING", "PAUSED"]
ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


def status() -> str:
    """The whole screen."""
    parts = {"server": server, "gpus": gpus, "workers": workers_here, "champion": champion, "stages": stages, "figures": figures}
    return "\n".join(block(name, part()) for name, part in parts.items())


def block(name: str, lines: list[str]) -> str:
    """The lines, the first behind the name: block("gpus", ["a", "b"]) -> "gpus      a" over "          b"."""
    return "\n".join(f"{name if not number else '':10}{line}" for number, line in enumerate(lines))


def server() -> list[str]:
    """What Prefect knows: workers, runs at work, the last that ended, the next on schedule."""
    url = PREFECT_API_URL.value()
    if not url:
        return ["none (PREFECT_API_URL is not set): `make flow` starts one for each run"]
    try:
        with httpx.Client(base_url=url, timeout=5, auth=password()) as client:
            return [url, *pools(client), *runs(client)]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return [f"{url} does not answer ({type(error).__name__}). Start it: make servers"]


def password() -> tuple[str, str] | None:
    """Of a server that asks for one: user and password."""
    user, _, word = (PREFECT_API_AUTH_STRING.value() or "").partition(":")
    return (user, word) if word else None


def pools(client: httpx.Client) -> list[str]:
    """Who takes runs from which pool."""
    online = {}
    for pool in (CPU_POOL, GPU_POOL):
        answer = client.post(f"/work_pools/{pool}/workers/filter", json={})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ["there are no work pools yet. Run: make deploy"]
        online[pool] = [one["name"] for one in answer.raise_for_status().json() if one["status"] == "ONLINE"]
    if not any(online.values()):
        return ["no worker takes runs. Run: make workers"]
    return [f"pool {pool}: {', '.join(names) or 'no worker'}" for pool, names in online.items()]


def runs(client: httpx.Client) -> list[str]:
    at_work = found(client, AT_WORK, "START_TIME_DESC")
    coming = found(client, ["SCHEDULED"], "EXPECTED_START_TIME_ASC")
    ended = found(client, ENDED, "END_TIME_DESC")
    return [
        *(told(one, "start_time", "since") for one in at_work),
        *([] if at_work else ["nothing runs"]),
        *(told(one, "expected_start_time", "at") for one in coming[:2]),
        *(told(one, "end_time", "at") for one in ended),
    ]


def found(client: httpx.Client, states: list[str], order: str) -> list[dict]:
    """The first runs that are in one of these states and in no other run."""
    wanted = {"state": {"type": {"any_": states}}, "parent_task_run_id": {"is_null_": True}}
    return client.post("/flow_runs/filter", json={"flow_runs": wanted, "sort": order, "limit": SHOWN}).raise_for_status().json()


def told(run: dict, moment: str, word: str) -> str:
    """"FAILED     brave-otter at 21 Nov 03:00, thousandwords-gpu" and what Prefect says of it where it went wrong."""
    when = f" {word} {datetime.fromisoformat(run[moment]).astimezone():%d %b %H:%M}" if run[moment] else ""
    where = f", {run['work_pool_name']}" if run["work_pool_name"] else ""
    message = " ".join(((run["state"] or {}).get("message") or "").split())
    why = f": {message[:90]}" if run["state_type"] in ("FAILED", "CRASHED") and message else ""
    return f"{run['state_type']:10} {run['name']}{when}{where}{why}"


def gpus() -> list[str]:
    return gpu.holders(gpu.visible()) or ["none to be seen"]


def workers_here() -> list[str]:
    return listed() or ["none was started in this folder"]


def champion() -> list[str]:
    """The versions that have a name in the registry."""
    try:
        registry = importlib.import_module("flows.registry")
        named = [line for line in registry.show() if "@" in line]
    except ImportError:
        return ["this project has no registry"]
    except UserError as error:
        return [str(error).splitlines()[0]]
    return named or ["none yet"]


def stages() -> list[str]:
    """What has changed since its last run."""
    try:
        graph = read_graph()
    except DvcException as error:
        return [f"unknown: {' '.join(str(error).split())[:120]}"]
    stale = [name for name in graph.needs if name in graph.stale]
    return [f"stale: {', '.join(stale)}" if stale else f"all {len(graph.needs)} are up to date"]


def figures() -> list[str]:
    """The headline of the last run."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(Path("results/metrics.json").read_bytes())
        rebuilt, best = known["reconstruction"]["psnr_hard"], known["clip_score"]["best"]
        return [f"{rebuilt:.2f} dB hard PSNR, CLIP score {best:.3f} for the best of {known['n']} (results/report.html)"]
    return ["none yet"]


def main() -> None:
    print(status())


if __name__ == "__main__":
    main()
