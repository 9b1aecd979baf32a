"""python -m flows.deploy: creates work pools, deployments and automations on the server of PREFECT_API_URL.

It can be run again at any time: existing objects are updated. It rejects a server that another project uses.
"""

import contextlib
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import prefect
from prefect.automations import Automation, EventTrigger, Posture
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL
from prefect.variables import Variable

from flows.command_line import one_sentence, parser
from flows.dvc.git import git
from flows.workers import gpu_lock
from thousandwords.core.errors import UserError

CPU_POOL, GPU_POOL = "thousandwords-cpu", "thousandwords-gpu"
OWNER = "thousandwords_project"
ZOMBIES = "thousandwords: crash what is no longer heard of"  # the name on servers that were set up before
# longer than a clock jumps; flows/workers/heartbeat.py, which reads no clock, is faster
SILENCE = timedelta(hours=2)
WAITING = ("Scheduled", "AwaitingConcurrencySlot", "AwaitingRetry", "Paused", "Suspended")
NIGHTLY = "0 3 * * *"  # UTC; the variable THOUSANDWORDS_NIGHTLY overrides it
# where ended runs are reported: by the server, also if a run's machine died, so it stores the addresses, encrypted
WEBHOOK, MAIL = "THOUSANDWORDS_WEBHOOK_URL", "THOUSANDWORDS_MAIL_URL"
ENDED = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")
END_EVENTS = {f"prefect.flow-run.{name}" for name in ENDED}
PAYLOAD = '{"run": "{{ flow_run.name }}", "flow": "{{ flow.name }}", "state": "{{ flow_run.state.name }}"}'
SUBJECT = "{{ flow.name }}: {{ flow_run.state.name }}"
BODY = "Run {{ flow_run.name }} of {{ flow.name }} ended: {{ flow_run.state.name }}. {{ flow_run.state.message or '' }}"


def notification_automations() -> list[Automation]:
    """An automation per address in the environment. Raises UserError, which does not show the address."""
    ended = {"expect": END_EVENTS, "posture": Posture.Reactive, "within": timedelta(0)}
    # the names are those on servers that were set up before: another would be a second automation
    ways = {"tell a webhook": (WEBHOOK, webhook), "tell a mailbox": (MAIL, mail)}
    return [
        run_automation(f"thousandwords: {name}", "Runs that ended", action(os.environ[variable]), **ended)
        for name, (variable, action) in ways.items()
        if os.environ.get(variable)
    ]


def webhook(url: str) -> CallWebhook:
    if not url.startswith(("http://", "https://")):
        needs = "must be an address that begins with http:// or https://"
        raise UserError(f"{WEBHOOK} {needs}, found {url[:8]!r}...")
    block = Webhook(url=url, method="POST").save("thousandwords", overwrite=True)
    return CallWebhook(block_document_id=block, payload=PAYLOAD)


def mail(url: str) -> SendNotification:
    """Mail by SMTP.

    By Slack's block, which passes any other address to apprise, which mails: the server cannot import a block of
    this project, and Prefect's own mail blocks need a commercial service.
    """
    from apprise import Apprise  # late: every command about workers imports this module, and few mail

    log = logging.getLogger("apprise")
    before, log.disabled = log.disabled, True  # it would log the address
    is_valid = url.startswith(("mailto://", "mailtos://")) and Apprise().add(url)
    log.disabled = before
    if not is_valid:
        raise UserError(
            f"{MAIL} must be an address in apprise's format, mailtos://user:password@smtp.example.org?from=me@example.org"
            f"&to=team@example.org, found {url.partition('://')[0][:8]!r}..."
        )
    block = SlackWebhook(url=url).save("thousandwords-mail", overwrite=True)
    return SendNotification(block_document_id=block, subject=SUBJECT, body=BODY)


def run_automation(name: str, description: str, action: ActionTypes, **trigger: object) -> Automation:
    """An automation that takes the action on events of a run, for each run."""
    runs = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
    event = EventTrigger(match=runs, for_each={"prefect.resource.id"}, threshold=1, **trigger)
    return Automation(name=name, description=description, trigger=event, actions=[action])


def bootstrap(root: Path = Path(".")) -> list[str]:
    """Update everything on the server; a line for each object. Raises UserError with the remedy."""
    lines = prepare_server(root)
    with get_client(sync_client=True) as client:
        for automation in (zombie_automation(), *notification_automations()):
            replace_automation(client, automation)
            lines.append(f"automation   {automation.name}")
    pool = GPU_POOL if gpu_lock.visible() else CPU_POOL
    nightly = os.environ.get("THOUSANDWORDS_NIGHTLY") or NIGHTLY
    environment = {**os.environ, "THOUSANDWORDS_POOL": pool, "THOUSANDWORDS_NIGHTLY": nightly}
    environment.pop("THOUSANDWORDS_ROOT", None)  # unset here: each worker has its own folder
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if result.returncode:
        output = " ".join((result.stdout + result.stderr).split())[-500:]
        raise UserError(f"prefect.yaml could not be deployed: {output}")
    return [*lines, f"deployments  of prefect.yaml, on {pool}"]


def prepare_server(root: Path = Path(".")) -> list[str]:
    """Claim the server, create its work pools. Raises UserError if it is another's, or none answers."""
    url, project, fix = server_url(), project_id(root), "or fix PREFECT_API_URL"
    with get_client(sync_client=True) as client:
        try:
            version = client.request("GET", "/admin/version").json()
        except httpx.HTTPError as error:
            found = f"no Prefect server answers at {url} ({type(error).__name__})"
            raise UserError(f"{found}. Start it, {fix}") from error
        except ValueError as error:
            found = f"the server at {url} is not Prefect"
            raise UserError(f"{found}. Give Prefect another port, {fix}") from error
        if version != (own := prefect.__version__):
            found = f"the server at {url} runs Prefect {version}, but this project needs {own}"
            fix = "Start this project's own on another port, and fix PREFECT_API_URL"
            raise UserError(f"{found}: it belongs to another project. {fix}")
        owner = Variable.get(OWNER)
        if owner not in (None, project):
            raise UserError(
                f"the Prefect server at {url} belongs to another project ({owner}). Start one for this project on another "
                f"port, or, if that project is gone: prefect variable delete {OWNER}"
            )
        Variable.set(OWNER, project, overwrite=True)
        for pool in (CPU_POOL, GPU_POOL):
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            # no limit: each worker has its own, so another machine adds room for more runs
            client.update_work_pool(pool, WorkPoolUpdate(concurrency_limit=None))
    return [f"server       {url}", f"work pools   {CPU_POOL}, {GPU_POOL}"]


def server_url() -> str:
    url = PREFECT_API_URL.value()
    if not url:
        address = "export PREFECT_API_URL=http://127.0.0.1:4200/api"
        fix = f"Run: make servers; or start one (prefect server start) and set its address: {address}"
        raise UserError(f"PREFECT_API_URL is not set, and no server of this folder is running. {fix}")
    return url


def project_id(root: Path) -> str:
    """The same in every clone of a project: the first commit; outside git the folder."""
    try:
        return git("rev-list", "--max-parents=0", "HEAD", root=root).split()[-1]
    except UserError:
        return str(root.resolve())


def zombie_automation() -> Automation:
    """Crash a run without a heartbeat for `SILENCE`, even where no flows/workers/heartbeat.py runs.

    It starts as soon as a worker has taken the run, not at the first heartbeat: a run may die before that.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    started = {f"prefect.flow-run.{name}" for name in ("Pending", "Running", "Cancelling")}
    waiting = {f"prefect.flow-run.{name}" for name in WAITING}
    message = "No heartbeat for two hours: its worker or its machine died"
    return run_automation(
        ZOMBIES,
        message,
        ChangeFlowRunState(state=StateType.CRASHED, message=message),
        after={heartbeat} | started,
        expect={heartbeat, "prefect.flow-run.Running"} | END_EVENTS | waiting,
        posture=Posture.Proactive,
        within=SILENCE,
    )


def replace_automation(client: SyncPrefectClient, automation: Automation) -> None:
    """Create the automation; any others of the same name are deleted."""
    for old in client.read_automations_by_name(automation.name):
        client.delete_automation(old.id)
    automation.create(_sync=True)


def main(argv: list[str] | None = None) -> None:
    parser(__doc__).parse_args(argv)
    with one_sentence("deploy"):
        print("\n".join(bootstrap()))


if __name__ == "__main__":
    main()
