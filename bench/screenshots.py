"""python -m bench.screenshots: take the studio's screenshots in docs/ again, from models/package."""

import tempfile
from pathlib import Path

from bench.studio import RunningStudio
from tests.helpers.browser import chromium, expect
from thousandwords.core.command_line import one_sentence

DOCS = Path(__file__).parent.parent / "docs"
CAPTION = "a small red star above a large blue square"
WIDE, PHONE = {"width": 1180, "height": 860}, {"width": 390, "height": 780}


def generate(page, candidates: int) -> None:
    page.get_by_test_id("caption").fill(CAPTION)
    page.get_by_test_id("candidates").fill(str(candidates))
    page.get_by_test_id("seed").fill("0")
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("best first")


def take_screenshot(page, name: str) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(700)  # until animations have ended
    page.screenshot(path=DOCS / f"studio-{name}.png", animations="disabled")


def open_best(page, action: str) -> None:
    page.get_by_test_id("candidate").first.click()
    page.get_by_test_id(action).click()


def take_all(browser, address: str) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto(address)
    page.get_by_test_id("example").first.wait_for()
    generate(page, 16)
    take_screenshot(page, "generate")
    open_best(page, "reproduce")
    expect(page.get_by_test_id("reproduce-result")).to_have_attribute("data-same", "true")
    take_screenshot(page, "image")
    page.get_by_test_id("to-tokens").click()
    page.get_by_test_id("surprisal-button").click()
    page.get_by_test_id("heat-map").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.set_viewport_size({**WIDE, "height": 1800})
    take_screenshot(page, "tokens")
    page.set_viewport_size(WIDE)
    page.get_by_test_id("to-inpaint").click()
    page.get_by_test_id("cell").first.wait_for()
    page.get_by_test_id("caption").fill("a small red star above a large green circle")
    page.get_by_test_id("seed").fill("0")
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("best first")
    page.evaluate("scrollTo(0, 0)")
    page.set_viewport_size({**WIDE, "height": 1240})
    take_screenshot(page, "inpaint")
    page.set_viewport_size(WIDE)
    page.goto(f"{address}/#/dataset")
    page.get_by_test_id("dataset-search").fill("a large green star at dusk")
    page.get_by_test_id("search-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("best first", timeout=300_000)  # of all images
    take_screenshot(page, "dataset")
    page.close()
    phone = browser.new_page(viewport=PHONE, device_scale_factor=2, color_scheme="dark")
    phone.goto(address)
    phone.get_by_test_id("example").first.wait_for()
    generate(phone, 12)
    take_screenshot(phone, "phone")
    phone.close()


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningStudio(Path(folder)) as studio,
        chromium() as browser,
    ):
        take_all(browser, studio.address)
    print("\n".join(str(path.relative_to(DOCS.parent)) for path in sorted(DOCS.glob("studio-*.png"))))


if __name__ == "__main__":
    with one_sentence("screenshots"):
        main()
