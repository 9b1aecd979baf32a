"""A draw as it is sent: a line of JSON per event, and a place in the gallery before the last of them."""
from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator

import numpy as np
from starlette.concurrency import run_in_threadpool

from studio.easel import Event
from studio.gallery import Drawn, Gallery
from studio.versions import Version
from thousandwords.config import section
from thousandwords.drawing import Settings
from thousandwords.errors import UserError
from thousandwords.images import decode_png
from thousandwords.provenance import provenance_of

log = logging.getLogger("studio")


async def lines(
    gallery: Gallery, version: Version, started: float, first: Event | None, events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    """The events of a draw as lines; when it is finished it is kept, and the last line names it."""
    drawn: list[Event] = []
    async with contextlib.aclosing(events):
        async for event in _begun(first, events):
            if event["event"] == "started":
                event |= {"version": version.id}
            if event["event"] == "candidate":
                drawn.append(event)
            if event["event"] == "ranked":
                settings = event.pop("settings")
                event |= {"id": await run_in_threadpool(_keep, gallery, version, drawn, event["order"], settings),
                          "seconds": round(time.monotonic() - started, 3)}  # fmt: skip
            event.pop("status", None)
            yield json.dumps(event, separators=(",", ":")).encode() + b"\n"


async def _begun(first: Event | None, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    if first is not None:
        yield first
    async for event in events:
        yield event


def _keep(gallery: Gallery, version: Version, drawn: list[Event], order: list[int], settings: dict) -> str | None:
    """A finished draw into the gallery; None where it takes no more, and the log says why."""
    files = [base64.b64decode(one["png"]) for one in drawn]
    facts = dataclasses.replace(provenance_of(files[0]), settings=section(settings, "settings", Settings))
    words = [[word for row in one["words"] for word in row] for one in drawn]
    pictures = np.stack([decode_png(file) for file in files])
    try:
        return gallery.add(Drawn(facts, version.id, words, pictures, [one["score"] for one in drawn], order))
    except (UserError, OSError) as error:
        log.warning("a draw was not kept in the gallery: %s", error)
        return None
