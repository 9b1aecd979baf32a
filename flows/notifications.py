"""Who is told of a run that ended: a webhook (THOUSANDWORDS_WEBHOOK_URL), a mailbox (THOUSANDWORDS_MAIL_URL), or both.

The server does the telling, also where the run's machine died; so the addresses are kept in its database, encrypted as all its
blocks are, and shown nowhere.
"""
from __future__ import annotations

import logging
import os
from datetime import timedelta
from uuid import UUID

from apprise import Apprise
from prefect.automations import Automation, EventTrigger, Posture
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from prefect.events.schemas.events import ResourceSpecification

from thousandwords.errors import UserError

WEBHOOK, MAIL = "THOUSANDWORDS_WEBHOOK_URL", "THOUSANDWORDS_MAIL_URL"
ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")}
PAYLOAD = '{"run": "{{ flow_run.name }}", "flow": "{{ flow.name }}", "state": "{{ flow_run.state.name }}"}'
SUBJECT = "{{ flow.name }}: {{ flow_run.state.name }}"
BODY = "Run {{ flow_run.name }} of {{ flow.name }} ended: {{ flow_run.state.name }}. {{ flow_run.state.message or '' }}"


def notices() -> list[Automation]:
    """An automation for each address that the environment names. Raises UserError for one that is none, without showing it."""
    found = {name: os.environ.get(name) for name in (WEBHOOK, MAIL)}
    makers = {WEBHOOK: ("thousandwords: tell a webhook", webhook), MAIL: ("thousandwords: tell a mailbox", mail)}
    return [told(name, make(found[key])) for key, (name, make) in makers.items() if found[key]]


def webhook(url: str) -> CallWebhook:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{WEBHOOK} should be an address that begins with http:// or https://, found {url[:8]!r}...")
    return CallWebhook(block_document_id=saved(Webhook(url=url, method="POST"), "thousandwords"), payload=PAYLOAD)


def mail(url: str) -> SendNotification:
    """Mail by SMTP. The block is Slack's because the server knows it, and it hands any other address to apprise, which mails.

    A block of our own would be a class that the server cannot import; Prefect's own mail blocks are a service's, or its cloud's.
    """
    if not url.startswith(("mailto://", "mailtos://")) or not _is_understood(url):
        raise UserError(
            f"{MAIL} should be an address as apprise takes it, mailtos://user:password@smtp.example.org?from=me@example.org"
            f"&to=team@example.org, found {url.partition('://')[0][:8]!r}..."
        )
    block = saved(SlackWebhook(url=url), "thousandwords-mail")
    return SendNotification(block_document_id=block, subject=SUBJECT, body=BODY)


def _is_understood(url: str) -> bool:
    log = logging.getLogger("apprise")
    before, log.disabled = log.disabled, True  # it would tell the address
    try:
        return bool(Apprise().add(url))
    finally:
        log.disabled = before


def saved(block: Webhook | SlackWebhook, name: str) -> UUID:
    return block.save(name, overwrite=True)


def told(name: str, action: ActionTypes) -> Automation:
    """Does the action for each run that ends."""
    trigger = EventTrigger(
        expect=ENDS,
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    return Automation(name=name, description="Runs that ended", trigger=trigger, actions=[action])
