"""Chromium, as the distribution has it, driven by Playwright; where one of both is missing, tests of pages skip and say so."""
from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator:
    """A browser that is ended at the end."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, so no page was tried")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here, so no page was tried: apt install chromium")
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        try:
            yield browser
        finally:
            browser.close()


def expect(locator):
    """What Playwright waits for to become true; patiently, for a busy machine's sake."""
    from playwright.sync_api import expect as expected

    expected.set_options(timeout=30_000)
    return expected(locator)
