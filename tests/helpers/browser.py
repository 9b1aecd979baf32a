"""Chromium, driven by Playwright; tests of pages skip with a message if one of both is missing."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest

# the first needs a fifth of the CPU time of the others
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator:
    """A browser that is closed at the end."""
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed, so the page was not tested"
    )
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(
            "Chromium is not installed, so the page was not tested: apt install chromium-headless-shell"
        )
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def expect(locator):
    """Playwright's expect(locator), with a timeout that is long enough for a busy machine."""
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=30_000)
    return playwright_expect(locator)
