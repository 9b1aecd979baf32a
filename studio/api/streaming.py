"""A generation as a stream of JSON lines, one per event; before the last line it is saved in the gallery."""

import base64
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import AsyncIterator

import numpy as np
from starlette.concurrency import run_in_threadpool

from studio.data.gallery import Gallery, GalleryEntry
from studio.data.versions import Version
from studio.worker.process import Event
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.data.images import decode_png
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.provenance import read_provenance

log = logging.getLogger("studio")


async def stream_lines(
    gallery: Gallery, version: Version, started: float, first: Event | None, events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    """Yield the events of a generation as JSON lines; the last line has the id of the gallery entry."""
    candidates: list[Event] = []
    async with contextlib.aclosing(events):
        event = first or await anext(events, None)
        while event is not None:
            if event["event"] == "started":
                event |= {"version": version.id}
            if event["event"] == "candidate":
                candidates.append(event)
            if event["event"] == "ranked":
                settings = event.pop("settings")
                saved = (gallery, version, candidates, event["order"], settings)
                name = await run_in_threadpool(_save_entry, *saved)
                event |= {"id": name, "seconds": round(time.monotonic() - started, 3)}
            event.pop("status", None)
            yield json.dumps(event, separators=(",", ":")).encode() + b"\n"
            event = await anext(events, None)


def _save_entry(
    gallery: Gallery, version: Version, candidates: list[Event], order: list[int], settings: dict
) -> str | None:
    """Save a finished generation in the gallery; None if that fails, with the reason in the log."""
    files = [base64.b64decode(event["png"]) for event in candidates]
    sampling = section(settings, "settings", SamplingConfig)
    provenance = dataclasses.replace(read_provenance(files[0]), settings=sampling)
    tokens = [[token for row in event["tokens"] for token in row] for event in candidates]
    images = np.stack([decode_png(file) for file in files])
    scores = [event["score"] for event in candidates]
    try:
        return gallery.add(GalleryEntry(provenance, version.id, tokens, images, scores, order))
    except (UserError, OSError) as error:
        log.warning("a generation could not be saved in the gallery: %s", error)
        return None
