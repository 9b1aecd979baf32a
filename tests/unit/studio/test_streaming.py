"""A draw as lines: each event is one, the last of a finished draw names its place in the gallery."""
from __future__ import annotations

import json
import time

import pytest

from studio import easel
from studio.courier import LOST
from studio.gallery import Gallery
from studio.streaming import lines
from studio.versions import Version
from thousandwords.files import DiskFull
from thousandwords.package import load_package

pytestmark = pytest.mark.anyio
VERSION = Version("2", "version 2", "0f" * 32)


@pytest.fixture(scope="module")
def drawn(package_folder):
    return list(easel.draw(load_package(package_folder), "a small green star on sand", 3, 7, None, {}))


async def told(gallery: Gallery, first: dict | None, *others: dict) -> list[dict]:
    async def events():
        for event in others:
            yield dict(event)

    return [json.loads(line) async for line in lines(gallery, VERSION, time.monotonic(), first, events())]


async def test_a_finished_draw_is_kept_and_named(tmp_path, drawn):
    gallery = Gallery(tmp_path)
    started, *candidates, ranked = await told(gallery, dict(drawn[0]), *drawn[1:])
    assert started == drawn[0] | {"version": "2"} and candidates == drawn[1:-1]
    kept = gallery.one(ranked["id"])
    assert [one["candidate"] for one in kept["pictures"]] == ranked["order"] and kept["version"] == "2"
    assert "settings" not in ranked and ranked["seconds"] >= 0


async def test_a_full_disk_costs_no_picture(tmp_path, drawn, monkeypatch):
    def full(_: object) -> str:
        raise DiskFull("no room")

    gallery = Gallery(tmp_path)
    monkeypatch.setattr(gallery, "add", full)
    *candidates, ranked = await told(gallery, None, *drawn[1:])
    assert len(candidates) == 3 and (ranked["event"], ranked["id"]) == ("ranked", None)


async def test_a_draw_that_breaks_off_is_not_kept_and_says_why(tmp_path, drawn):
    gallery = Gallery(tmp_path)
    *_, last = await told(gallery, dict(drawn[0]), drawn[1], LOST)
    assert last == {"event": "error", "error": LOST["error"], "field": None} and gallery.page(None, 9)["draws"] == []
