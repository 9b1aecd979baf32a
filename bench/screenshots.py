"""python -m bench.screenshots: the README's pictures of the studio, taken anew from models/package into docs/. Look at them."""
from __future__ import annotations

import tempfile
from pathlib import Path

from bench.studio import Running
from tests.browser import chromium, expect

DOCS = Path(__file__).parent.parent / "docs"
CAPTION = "a small red star above a large blue square"
WIDE, PHONE = {"width": 1180, "height": 860}, {"width": 390, "height": 780}


def draw(page, candidates: int) -> None:
    page.get_by_test_id("caption").fill(CAPTION)
    page.get_by_test_id("candidates").fill(str(candidates))
    page.get_by_test_id("draw-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("best first")


def take(page, name: str) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)  # what moves has come to rest
    page.screenshot(path=DOCS / f"studio-{name}.png", animations="disabled")


def open_best(page, then: str) -> None:
    page.get_by_test_id("tile").first.click()
    page.get_by_test_id(then).click()


def shoot(browser, address: str) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto(address)
    page.get_by_test_id("example").first.wait_for()
    draw(page, 16)
    take(page, "draw")
    open_best(page, "redraw")
    expect(page.get_by_test_id("redraw-result")).to_have_attribute("data-same", "true")
    take(page, "picture")
    page.get_by_test_id("to-words").click()
    page.get_by_test_id("surprise-button").click()
    page.get_by_test_id("heat").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.set_viewport_size({**WIDE, "height": 1800})
    take(page, "words")
    page.set_viewport_size(WIDE)
    page.get_by_test_id("to-complete").click()
    page.get_by_test_id("cell").first.wait_for()
    page.get_by_test_id("caption").fill("a small red star above a large green circle")
    page.get_by_test_id("draw-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("best first")
    page.evaluate("scrollTo(0, 0)")
    page.set_viewport_size({**WIDE, "height": 1240})
    take(page, "complete")
    page.set_viewport_size(WIDE)
    page.goto(f"{address}/#/data")
    page.get_by_test_id("data-search").fill("a large green star at dusk")
    page.get_by_test_id("search-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("best first", timeout=300_000)  # of all pictures
    take(page, "data")
    page.close()
    phone = browser.new_page(viewport=PHONE, device_scale_factor=2, color_scheme="dark")
    phone.goto(address)
    phone.get_by_test_id("example").first.wait_for()
    draw(phone, 12)
    take(phone, "phone")
    phone.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Running(Path(folder)) as studio, chromium() as browser:
        shoot(browser, studio.address)
    print("\n".join(str(one.relative_to(DOCS.parent)) for one in sorted(DOCS.glob("studio-*.png"))))


if __name__ == "__main__":
    main()
