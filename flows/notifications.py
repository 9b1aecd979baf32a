"""Notifications of ended runs: to THOUSANDWORDS_WEBHOOK_URL, THOUSANDWORDS_MAIL_URL, or both.

The server sends them, also if the run's machine died; so the addresses are stored in its database, encrypted
like all its blocks, and never shown.
"""

import logging
import os
from datetime import timedelta

from apprise import Apprise
from prefect.automations import Automation, EventTrigger, Posture
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from prefect.events.schemas.events import ResourceSpecification

from thousandwords.core.errors import UserError

WEBHOOK, MAIL = "THOUSANDWORDS_WEBHOOK_URL", "THOUSANDWORDS_MAIL_URL"
END_EVENTS = {
    f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")
}
PAYLOAD = '{"run": "{{ flow_run.name }}", "flow": "{{ flow.name }}", "state": "{{ flow_run.state.name }}"}'
SUBJECT = "{{ flow.name }}: {{ flow_run.state.name }}"
BODY = "Run {{ flow_run.name }} of {{ flow.name }} ended: {{ flow_run.state.name }}. {{ flow_run.state.message or '' }}"


def notification_automations() -> list[Automation]:
    """An automation per address in the environment. Raises UserError, which does not show the address."""
    actions = {  # the names are those on servers that were set up before: another would be a second automation
        WEBHOOK: ("thousandwords: tell a webhook", webhook),
        MAIL: ("thousandwords: tell a mailbox", mail),
    }
    ended = {"expect": END_EVENTS, "posture": Posture.Reactive, "within": timedelta(0)}
    return [
        run_automation(name, "Runs that ended", make_action(os.environ[variable]), **ended)
        for variable, (name, make_action) in actions.items()
        if os.environ.get(variable)
    ]


def webhook(url: str) -> CallWebhook:
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"{WEBHOOK} must be an address that begins with http:// or https://, found {url[:8]!r}..."
        )
    block = Webhook(url=url, method="POST").save("thousandwords", overwrite=True)
    return CallWebhook(block_document_id=block, payload=PAYLOAD)


def mail(url: str) -> SendNotification:
    """Mail by SMTP.

    By Slack's block, which passes any other address to apprise, which mails: the server cannot import a block of
    this project, and Prefect's own mail blocks need a commercial service.
    """
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
