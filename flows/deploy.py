"""python -m flows.bootstrap: work pools, deployments and the watch over dead runs, on the server of PREFECT_API_URL.

May be run again at any time: what is there is brought up to date. It refuses a server that another project uses.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import prefect
from prefect.automations import Automation, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.variables import Variable

from flows import gpu
from flows._git import git
from flows.notices import ENDS, notices
from thousandwords.errors import UserError

CPU_POOL, GPU_POOL = "thousandwords-cpu", "thousandwords-gpu"
OWNER = "thousandwords_project"
ZOMBIES = "thousandwords: crash what is no longer heard of"
SILENCE = timedelta(hours=2)  # longer than a clock jumps; flows/watch.py, which minds no clock, is much faster
WAITS = {f"prefect.flow-run.{name}" for name in ("Scheduled", "AwaitingConcurrencySlot", "AwaitingRetry", "Paused", "Suspended")}
NIGHTLY = "0 3 * * *"  # UTC; the variable THOUSANDWORDS_NIGHTLY has another


def bootstrap(root: Path = Path(".")) -> list[str]:
    """Brings the server up to date; a line for each thing that is there now. Raises UserError with the mend."""
    lines = enter(root)
    with get_client(sync_client=True) as client:
        for automation in (zombie_watch(), *notices()):
            replace(client, automation)
            lines.append(f"automation   {automation.name}")
    return [*lines, *deploy(root)]


def enter(root: Path = Path(".")) -> list[str]:
    """The server made this project's, with its work pools; raises UserError where it is another's, or none answers."""
    url = server_url()
    with get_client(sync_client=True) as client:
        check_server(client, url)
        claim(project_id(root), url)
        make_pool(client, CPU_POOL)
        make_pool(client, GPU_POOL)
    return [f"server       {url}", f"work pools   {CPU_POOL}, {GPU_POOL}"]


def server_url() -> str:
    url = PREFECT_API_URL.value()
    if not url:
        raise UserError(
            "PREFECT_API_URL is not set, and no server of this folder is up, so there is nothing to set up. Run: make servers; "
            "or start one (prefect server start) and say where: export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    return url


def check_server(client: SyncPrefectClient, url: str) -> None:
    """Raises UserError unless a Prefect server of this client's version answers at `url`."""
    try:
        found = client.request("GET", "/admin/version").json()
    except httpx.HTTPError as error:
        told = f"no Prefect server answers at {url} ({type(error).__name__}). Start it, or mend PREFECT_API_URL"
        raise UserError(told) from error
    except ValueError as error:
        told = f"what listens at {url} is no Prefect server. Give Prefect another port, or mend PREFECT_API_URL"
        raise UserError(told) from error
    if found != prefect.__version__:
        raise UserError(
            f"the server at {url} is Prefect {found}, and this project's is {prefect.__version__}: it is another one's. "
            "Start this project's own on another port, and mend PREFECT_API_URL"
        )


def project_id(root: Path) -> str:
    """The same in every clone of a project: its first commit; outside git its folder."""
    try:
        return git("rev-list", "--max-parents=0", "HEAD", root=root).split()[-1]
    except UserError:
        return str(root.resolve())


def claim(project: str, url: str) -> None:
    """Makes the server this project's; raises UserError where it is another's."""
    owner = Variable.get(OWNER)
    if owner not in (None, project):
        raise UserError(
            f"the Prefect server at {url} belongs to another project ({owner}). Start one for this project on another "
            f"port, or, if that project is gone: prefect variable delete {OWNER}"
        )
    Variable.set(OWNER, project, overwrite=True)


def make_pool(client: SyncPrefectClient, name: str) -> None:
    """Each worker has a limit of its own, and the pool none: a machine more is room for more runs."""
    try:
        client.read_work_pool(name)
        client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=None))
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def zombie_watch() -> Automation:
    """A run of which nothing was heard for `SILENCE` is dead: it is marked so, even where no flows/watch.py lives.

    Prefect's documentation watches what came after a heartbeat. One that dies before its first, or while it is cancelled,
    would never end; so the watch begins as soon as a worker has taken the run.
    """
    heard = "prefect.flow-run.heartbeat"
    begun = {f"prefect.flow-run.{name}" for name in ("Pending", "Running", "Cancelling")}
    return Automation(
        name=ZOMBIES,
        description="A worker or its machine died: no heartbeat for two hours",
        trigger=EventTrigger(
            after={heard} | begun,
            expect={heard, "prefect.flow-run.Running"} | ENDS | WAITS,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat for two hours: its machine died")],
    )


def replace(client: SyncPrefectClient, automation: Automation) -> None:
    """Makes the automation, in the place of any of its name."""
    for old in client.request("POST", "/automations/filter", json={}).json():
        if old["name"] == automation.name:
            client.request("DELETE", "/automations/{id}", path_params={"id": old["id"]})
    automation.create(_sync=True)


def deploy(root: Path) -> list[str]:
    """Deploys prefect.yaml; raises UserError with what Prefect said."""
    pool = GPU_POOL if gpu.visible() else CPU_POOL
    nightly = os.environ.get("THOUSANDWORDS_NIGHTLY") or NIGHTLY
    environment = {**os.environ, "THOUSANDWORDS_POOL": pool, "THOUSANDWORDS_NIGHTLY": nightly}
    environment.pop("THOUSANDWORDS_ROOT", None)  # what is not known here is left to each worker, who has a folder of its own
    words = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"prefect.yaml could not be deployed: {' '.join((done.stdout + done.stderr).split())[-500:]}")
    return [f"deployments  of prefect.yaml, on {pool}"]


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    try:
        print("\n".join(bootstrap()))
    except UserError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
