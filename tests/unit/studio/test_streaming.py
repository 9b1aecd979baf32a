"""A generation as JSON lines: a line per event, the last one with the id of the gallery entry."""

import json
import time

import pytest

from studio.api.routes import stream_lines
from studio.data.gallery import Gallery
from studio.data.versions import Version
from studio.worker import handlers
from studio.worker.queue import WORKER_DIED
from thousandwords.core.files import DiskFull

pytestmark = pytest.mark.anyio
VERSION = Version("2", "version 2", "0f" * 32)


@pytest.fixture(scope="module")
def generated(package):
    return list(handlers.generate(package, "a small green star on sand", 3, 7, None, {}))


async def streamed(gallery: Gallery, first: dict | None, *others: dict) -> list[dict]:
    async def events():
        for event in others:
            yield dict(event)

    stream = stream_lines(gallery, VERSION, time.monotonic(), first, events())
    return [json.loads(line) async for line in stream]


async def test_a_full_disk_loses_no_image_and_is_logged(tmp_path, generated, monkeypatch, caplog):
    def full(_: object) -> str:
        raise DiskFull("no room")

    gallery = Gallery(tmp_path)
    monkeypatch.setattr(gallery, "add", full)
    *candidates, ranked = await streamed(gallery, None, *generated[1:])
    assert len(candidates) == 3 and (ranked["event"], ranked["id"]) == ("ranked", None)
    assert "a generation could not be saved in the gallery: no room" in caplog.text


async def test_an_unfinished_generation_is_not_saved_and_says_why(tmp_path, generated):
    gallery = Gallery(tmp_path)
    *_, last = await streamed(gallery, dict(generated[0]), generated[1], WORKER_DIED)
    assert last == {"event": "error", "error": WORKER_DIED["error"], "field": None}
    assert gallery.page(None, 9)["entries"] == []
