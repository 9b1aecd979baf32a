"""The studio's page in a real browser: draw, rank, download, draw again, complete, set a word; by keyboard, and on a phone."""
from __future__ import annotations

import base64
import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.browser import expect
from tests.studio_process import StudioProcess, furnish
from thousandwords.images import decode_image
from thousandwords.provenance import provenance_of

PROMPT = "a small green star on sand"
VIEWS = ("draw", "complete", "words", "gallery", "data", "compare", "api")


@pytest.fixture(scope="module")
def studio(tmp_path_factory, package_folder):
    running = StudioProcess(furnish(tmp_path_factory.mktemp("studio"), package_folder))
    yield running
    running.stop()


@pytest.fixture
def page(studio, browser):
    with opened(studio, browser) as page:
        yield page


@contextlib.contextmanager
def opened(studio, browser):
    """A page that was opened anew; whatever it does, it says nothing to the console and asks no other host."""
    context = browser.new_context(base_url=studio.address, viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/")
    yield page
    context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []  # which a refusal is to Chromium
    assert {url for url in asked if not url.startswith((studio.address, "data:", "blob:"))} == set()


def draw(page, caption: str = PROMPT, candidates: int = 6, seed: int = 0) -> None:
    """Draws, and waits until all are there and ranked."""
    page.get_by_test_id("caption").fill(caption)
    page.get_by_test_id("candidates").fill(str(candidates))
    page.get_by_test_id("seed").fill(str(seed))
    page.get_by_test_id("draw-button").click()
    ranked(page, candidates)


def ranked(page, candidates: int) -> None:
    expect(page.get_by_test_id("tile")).to_have_count(candidates)
    expect(page.get_by_test_id("status")).to_contain_text("best first")


def scores(page) -> list[float]:
    return [float(one.get_attribute("data-score")) for one in page.get_by_test_id("tile").all()]


def downloaded(page) -> bytes:
    with page.expect_download() as waiting:
        page.locator("[data-testid=download]:visible").click()
    return waiting.value.path().read_bytes()


def a_picture() -> dict:
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(buffer := io.BytesIO(), "PNG")
    return {"name": "mine.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


# --- draw --------------------------------------------------------------------------------------------------------------


def test_a_caption_becomes_pictures_best_first(page):
    draw(page)
    assert scores(page) == sorted(scores(page), reverse=True)
    assert {one.get_attribute("data-candidate") for one in page.get_by_test_id("tile").all()} == set("012345")
    assert "caption=a+small+green+star+on+sand" in page.url and "seed=0" in page.url


def test_an_address_is_a_draw_that_can_be_sent_to_somebody(page):
    draw(page, seed=7)
    first, address = scores(page), page.url
    page.goto("about:blank")
    page.goto(address)
    expect(page.get_by_test_id("caption")).to_have_value(PROMPT)
    page.get_by_test_id("candidates").fill("6")
    page.get_by_test_id("draw-button").click()
    ranked(page, 6)
    assert scores(page) == first


def test_a_download_says_how_it_was_drawn_and_is_drawn_again(page):
    draw(page, candidates=3, seed=5)
    tile = page.get_by_test_id("tile").first
    tile.click()
    data = downloaded(page)
    facts = provenance_of(data)
    assert (facts.caption, facts.seed, str(facts.candidate)) == (PROMPT, 5, tile.get_attribute("data-candidate"))
    page.get_by_test_id("redraw").click()
    expect(page.get_by_test_id("redraw-result")).to_have_attribute("data-same", "true")
    page.get_by_test_id("close").click()
    page.get_by_test_id("upload-studio").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": data})
    expect(page.get_by_test_id("redraw-result")).to_have_attribute("data-same", "true")


def test_a_picture_that_is_opened_as_another_is_closed_is_drawn_again(page):
    """The end of the one dialog is told late, and is not to end what the next has begun."""
    draw(page, candidates=1)
    page.get_by_test_id("tile").click()
    data = downloaded(page)
    page.get_by_test_id("close").evaluate("""(close, bytes) => {
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0))], 'a.png', { type: 'image/png' }));
        const input = document.querySelector('[data-testid=upload-studio]');
        input.files = files.files;
        close.click();
        input.dispatchEvent(new Event('change'));
    }""", base64.b64encode(data).decode())
    expect(page.get_by_test_id("redraw-result")).to_have_attribute("data-same", "true")


def test_a_draw_that_the_gallery_cannot_keep_is_told_so(page):
    png = base64.b64encode(a_picture()["buffer"]).decode()
    events = [
        {"event": "started", "prompt": PROMPT, "candidates": 1, "seed": 0, "version": "package", "truncated": False},
        {"event": "candidate", "candidate": 0, "png": png, "words": [[0]], "score": 0.5},
        {"event": "ranked", "order": [0], "id": None, "seconds": 0.1},
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    page.route("**/api/draw", lambda route: route.fulfill(content_type="application/x-ndjson", body=lines))
    draw(page, candidates=1)
    expect(page.get_by_test_id("status")).to_contain_text("best first; the gallery could not keep them")


def test_a_caption_is_text_whatever_it_says(page):
    caption = "<img src=x onerror=alert(1)><script>alert(2)</script> & star"
    page.on("dialog", lambda dialog: pytest.fail(f"a caption ran: {dialog.message}"))
    draw(page, caption, candidates=1)
    page.get_by_test_id("tile").click()
    expect(page.get_by_test_id("detail")).to_contain_text("<script>alert(2)</script>")
    page.get_by_test_id("close").click()
    page.goto("/#/gallery")
    expect(page.get_by_test_id("gallery-item").first).to_contain_text("<script>alert(2)</script>")


def test_what_is_not_read_of_a_caption_is_told(page):
    draw(page, "a red square above a blue circle " * 9, candidates=1)
    expect(page.get_by_test_id("truncated")).to_be_visible()


def test_a_wrong_number_is_told_beside_its_field(page):
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("candidates").fill("65")
    page.get_by_test_id("draw-button").click()
    expect(page.get_by_test_id("field-error")).to_contain_text("whole number from 1")
    assert page.get_by_test_id("tile").count() == 0


def test_it_is_all_done_by_keyboard_too(page):
    page.get_by_test_id("caption").focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    ranked(page, 16)
    page.get_by_test_id("tile").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("detail")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_test_id("detail")).to_contain_text("2 of 16")
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("detail")).not_to_be_visible()


# --- complete ------------------------------------------------------------------------------------------------------------


def test_a_picture_is_completed_from_the_cells_that_are_kept(page):
    page.goto("/#/complete")
    page.get_by_test_id("upload").set_input_files(a_picture())
    expect(page.get_by_test_id("cell")).to_have_count(16)
    pressed = page.locator("[data-testid=cell][aria-pressed=true]")
    expect(pressed).to_have_count(8)
    page.locator("[data-testid=cell][data-row='3'][data-column='0']").focus()
    page.keyboard.press("Space")
    expect(pressed).to_have_count(9)
    draw(page, candidates=2)
    page.get_by_test_id("tile").first.click()
    given = provenance_of(downloaded(page)).given
    assert [place for place, word in enumerate(given) if word >= 0] == [*range(8), 12]


def test_nothing_kept_is_told_and_not_drawn(page):
    page.goto("/#/complete")
    page.get_by_test_id("upload").set_input_files(a_picture())
    page.get_by_test_id("keep-none").click()
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("draw-button").click()
    expect(page.get_by_test_id("notice")).to_contain_text("Nothing is kept")


def test_what_is_no_picture_is_told(page):
    page.goto("/#/complete")
    page.get_by_test_id("upload").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"nothing"})
    expect(page.get_by_test_id("notice")).to_contain_text("this is no picture that can be used")


# --- words ---------------------------------------------------------------------------------------------------------------


def test_a_word_is_set_and_taken_back_and_the_picture_follows(page):
    draw(page, candidates=1)
    page.get_by_test_id("tile").click()
    page.get_by_test_id("to-words").click()
    cell = page.locator("[data-testid=cell][data-row='1'][data-column='2']")
    before, picture = cell.get_attribute("data-word"), page.locator(".grid img").get_attribute("src")
    cell.click()
    page.get_by_test_id("word-input").fill(str((int(before) + 5) % 12))
    page.keyboard.press("Enter")
    expect(cell).to_have_attribute("data-word", str((int(before) + 5) % 12))
    assert page.locator(".grid img").get_attribute("src") != picture
    changed = decode_image(downloaded(page))
    page.get_by_test_id("undo").click()
    expect(cell).to_have_attribute("data-word", before)
    assert page.locator(".grid img").get_attribute("src") == picture
    page.get_by_test_id("redo").click()
    assert np.array_equal(decode_image(downloaded(page)), changed)


def test_words_are_flipped_and_what_surprises_is_shown(page):
    page.goto("/#/words")
    page.get_by_test_id("upload").set_input_files(a_picture())
    corner = page.locator("[data-testid=cell][data-row='0'][data-column='0']")
    other = page.locator("[data-testid=cell][data-row='0'][data-column='3']")
    wanted = other.get_attribute("data-word")
    page.get_by_test_id("flip").click()
    expect(corner).to_have_attribute("data-word", wanted)
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("surprise-button").click()
    expect(page.get_by_test_id("heat")).to_be_visible()
    expect(page.get_by_test_id("worst")).to_have_count(5)


# --- looking back ----------------------------------------------------------------------------------------------------------


def test_the_gallery_keeps_a_draw_until_it_is_deleted(page):
    draw(page, "a draw of its own", candidates=2)
    page.goto("/#/gallery")
    item = page.get_by_test_id("gallery-item").filter(has_text="a draw of its own")
    expect(item).to_have_count(1)
    item.get_by_test_id("delete").click()
    page.get_by_test_id("confirm-yes").click()
    expect(item).to_have_count(0)


def test_the_gallery_is_searched_by_what_pictures_show(page, studio):
    for seed in range(3):
        studio.draw(prompt=PROMPT, candidates=2, seed=seed)
    page.goto("/#/gallery")
    newest = [draw["id"] for draw in studio.ask.get("/api/gallery").json()["draws"]]
    fitting = [draw["id"] for draw in studio.ask.get("/api/gallery", params={"query": "a blue circle"}).json()["draws"]]
    assert sorted(fitting) == sorted(newest) and fitting != newest
    shown = page.get_by_test_id("gallery-item")
    expect(shown).to_have_count(len(newest))
    assert [one.get_attribute("data-id") for one in shown.all()] == newest
    page.get_by_test_id("gallery-search").fill("a blue circle")
    page.get_by_test_id("search-button").click()
    expect(shown.first).to_have_attribute("data-id", fitting[0])
    assert [one.get_attribute("data-id") for one in shown.all()] == fitting


def test_the_data_set_is_searched_by_text_and_a_sample_finds_its_neighbours(page):
    page.goto("/#/data")
    expect(page.get_by_test_id("data-item")).to_have_count(24)
    page.get_by_test_id("data-search").fill("a star")
    page.get_by_test_id("search-button").click()
    expect(page.get_by_test_id("data-item").first).to_be_visible()
    page.goto("/#/draw")
    draw(page, candidates=1)
    page.get_by_test_id("tile").click()
    page.get_by_test_id("nearest").click()
    expect(page.get_by_test_id("nearest-result").locator("img").first).to_be_visible()


def test_two_versions_of_the_registry_draw_side_by_side(browser, project):
    studio = StudioProcess(project)
    try:
        with opened(studio, browser) as page:
            page.goto("/#/compare")
            page.get_by_test_id("version-left").select_option("1")
            page.get_by_test_id("version-right").select_option("2")
            page.get_by_test_id("caption").fill(PROMPT)
            page.get_by_test_id("candidates").fill("3")
            page.get_by_test_id("draw-button").click()
            expect(page.get_by_test_id("tile")).to_have_count(6)
            first, second = page.locator(".board").all()
            expect(first.get_by_test_id("status")).to_contain_text("best first")
            expect(second.get_by_test_id("status")).to_contain_text("best first")
            assert scores(first) == sorted(scores(first), reverse=True) and scores(first) != scores(second)
            page.goto("/#/draw")
            page.get_by_text("Settings").first.click()
            page.get_by_test_id("version").select_option("1")
            draw(page, candidates=3)
            assert scores(page) == [one["score"] for one in best(studio, "1")]
    finally:
        studio.stop()


def best(studio: StudioProcess, version: str) -> list[dict]:
    """What the API itself gives for the same request, best first."""
    _, *candidates, ranked = studio.draw(prompt=PROMPT, candidates=3, seed=0, version=version)
    return [candidates[number] for number in ranked["order"]]


def test_every_operation_of_the_api_is_listed(page, studio):
    page.goto("/#/api")
    described = studio.ask.get("/openapi.json").json()["paths"]
    expect(page.get_by_test_id("operation")).to_have_count(sum(map(len, described.values())))


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("view", VIEWS)
def test_no_view_is_wider_than_its_window(page, view, width):
    page.set_viewport_size({"width": width, "height": 740})
    page.goto(f"/#/{view}")
    page.wait_for_load_state("networkidle")
    expect(page.locator("main h1, main label").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_server_that_is_gone_is_told_and_found_again(page):
    page.route("**/api/**", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("draw-button").click()
    expect(page.get_by_test_id("notice").or_(page.get_by_test_id("error-banner")).first).to_be_visible()
    page.unroute_all()
    page.get_by_test_id("draw-button").click()
    ranked(page, 16)
