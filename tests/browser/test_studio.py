"""The studio's page in a browser: generate, download, reproduce, inpaint, edit tokens; keyboard, phone."""

import base64
import contextlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import expect
from tests.helpers.studio_process import StudioProcess, make_project
from thousandwords.data.image_decoding import decode_image
from thousandwords.inference.provenance import read_provenance

PROMPT = "a small green star on sand"


@pytest.fixture(scope="module")
def studio(tmp_path_factory, package_folder):
    studio = StudioProcess(make_project(tmp_path_factory.mktemp("studio"), package_folder))
    yield studio
    studio.stop()


@pytest.fixture
def page(studio, browser):
    with opened(studio, browser) as page:
        yield page


@contextlib.contextmanager
def opened(studio, browser):
    """A newly opened page. It must write nothing to the console and send no request to another host."""
    viewport = {"width": 1280, "height": 900}
    context = browser.new_context(base_url=studio.address, viewport=viewport, reduced_motion="reduce")
    page, console, requests = context.new_page(), [], []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto("/")
    yield page
    context.close()
    http_errors = "Failed to load resource"  # Chromium logs them
    assert [text for text in console if not text.startswith(http_errors)] == []
    assert {url for url in requests if not url.startswith((studio.address, "data:", "blob:"))} == set()


def generate(page, caption: str = PROMPT, candidates: int = 6, seed: int = 0) -> None:
    """Generate, and wait until all candidates are ranked."""
    page.get_by_test_id("caption").fill(caption)
    page.get_by_test_id("candidates").fill(str(candidates))
    page.get_by_test_id("seed").fill(str(seed))
    page.get_by_test_id("generate-button").click()
    wait_for_ranking(page, candidates)


def wait_for_ranking(page, candidates: int) -> None:
    expect(page.get_by_test_id("candidate")).to_have_count(candidates)
    expect(page.get_by_test_id("status")).to_contain_text("best first")


def scores(page) -> list[float]:
    return [float(each.get_attribute("data-score")) for each in page.get_by_test_id("candidate").all()]


def download(page) -> bytes:
    with page.expect_download() as event:
        page.locator("[data-testid=download]:visible").click()
    return event.value.path().read_bytes()


def png_file(data: bytes) -> dict:
    return {"name": "mine.png", "mimeType": "image/png", "buffer": data}


def image_file() -> dict:
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(buffer := io.BytesIO(), "PNG")
    return png_file(buffer.getvalue())


def cell_at(page, row: int, column: int):
    return page.locator(f"[data-testid=cell][data-row='{row}'][data-column='{column}']")


def test_a_caption_gives_images_best_first_and_an_address_that_gives_the_same_ones(page):
    generate(page, seed=7)
    first, address = scores(page), page.url
    assert first == sorted(first, reverse=True)
    candidates = page.get_by_test_id("candidate").all()
    assert {candidate.get_attribute("data-candidate") for candidate in candidates} == set("012345")
    assert "caption=a+small+green+star+on+sand" in address and "seed=7" in address
    page.goto("about:blank")
    page.goto(address)
    expect(page.get_by_test_id("caption")).to_have_value(PROMPT)
    page.get_by_test_id("candidates").fill("6")
    page.get_by_test_id("generate-button").click()
    wait_for_ranking(page, 6)
    assert scores(page) == first


def test_a_downloaded_image_has_its_provenance_and_is_reproduced(page):
    generate(page, candidates=3, seed=5)
    candidate = page.get_by_test_id("candidate").first
    candidate.click()
    data = download(page)
    provenance = read_provenance(data)
    assert (provenance.caption, provenance.seed) == (PROMPT, 5)
    assert str(provenance.candidate) == candidate.get_attribute("data-candidate")
    page.get_by_test_id("reproduce").click()
    expect(page.get_by_test_id("reproduce-result")).to_have_attribute("data-same", "true")
    page.get_by_test_id("close").click()
    page.get_by_test_id("upload-studio").set_input_files(png_file(data))
    expect(page.get_by_test_id("reproduce-result")).to_have_attribute("data-same", "true")


def test_an_image_opened_while_another_closes_is_reproduced(page):
    """The close event of the first dialog arrives late and must not stop the work of the next one."""
    generate(page, candidates=1)
    page.get_by_test_id("candidate").click()
    data = download(page)
    page.get_by_test_id("close").evaluate(
        """(close, bytes) => {
        const files = new DataTransfer();
        const data = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
        files.items.add(new File([data], 'a.png', { type: 'image/png' }));
        const input = document.querySelector('[data-testid=upload-studio]');
        input.files = files.files;
        close.click();
        input.dispatchEvent(new Event('change'));
    }""",
        base64.b64encode(data).decode(),
    )
    expect(page.get_by_test_id("reproduce-result")).to_have_attribute("data-same", "true")


def test_candidates_that_the_gallery_cannot_save_are_reported(page):
    png = base64.b64encode(image_file()["buffer"]).decode()
    started = {"prompt": PROMPT, "candidates": 1, "seed": 0, "version": "package", "truncated": False}
    events = [
        {"event": "started", **started},
        {"event": "candidate", "candidate": 0, "png": png, "tokens": [[0]], "score": 0.5},
        {"event": "ranked", "order": [0], "id": None, "seconds": 0.1},
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    answer = {"content_type": "application/x-ndjson", "body": lines}
    page.route("**/api/generate", lambda route: route.fulfill(**answer))
    generate(page, candidates=1)
    expect(page.get_by_test_id("status")).to_contain_text("best first; the gallery could not save them")


def test_a_caption_is_shown_as_text_and_never_as_html(page):
    caption = "<img src=x onerror=alert(1)><script>alert(2)</script> & star " + "a red square " * 20
    page.on("dialog", lambda dialog: pytest.fail(f"a caption ran: {dialog.message}"))
    generate(page, caption, candidates=1)
    expect(page.get_by_test_id("truncated")).to_be_visible()  # the model does not read all of it
    page.get_by_test_id("candidate").click()
    expect(page.get_by_test_id("image-dialog")).to_contain_text("<script>alert(2)</script>")
    page.get_by_test_id("close").click()
    page.goto("/#/gallery")
    expect(page.get_by_test_id("gallery-item").first).to_contain_text("<script>alert(2)</script>")


def test_a_wrong_number_is_reported_beside_its_field(page):
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("candidates").fill("65")
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("field-error")).to_contain_text("whole number from 1")
    assert page.get_by_test_id("candidate").count() == 0


def test_the_page_works_by_keyboard_alone(page):
    page.get_by_test_id("caption").focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    wait_for_ranking(page, 16)
    page.get_by_test_id("candidate").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("image-dialog")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_test_id("image-dialog")).to_contain_text("2 of 16")
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("image-dialog")).not_to_be_visible()


def test_an_image_is_inpainted_from_the_kept_cells(page):
    page.goto("/#/inpaint")
    page.get_by_test_id("upload").set_input_files(image_file())
    expect(page.get_by_test_id("cell")).to_have_count(16)
    pressed = page.locator("[data-testid=cell][aria-pressed=true]")
    expect(pressed).to_have_count(8)
    cell_at(page, 3, 0).focus()
    page.keyboard.press("Space")
    expect(pressed).to_have_count(9)
    generate(page, candidates=2)
    page.get_by_test_id("candidate").first.click()
    fixed_tokens = read_provenance(download(page)).fixed_tokens
    assert [position for position, token in enumerate(fixed_tokens) if token >= 0] == [*range(8), 12]


def test_a_caption_written_by_the_model_is_shown_and_can_be_generated_from(page):
    def add_caption(route):
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"caption": "a red star"})

    page.route("**/api/images*", add_caption)
    page.goto("/#/inpaint")
    page.get_by_test_id("upload").set_input_files(image_file())
    expect(page.get_by_test_id("written-caption")).to_have_text("Caption written by the model: a red star")
    expect(page.get_by_test_id("caption")).to_have_value("a red star")


def test_a_file_that_is_no_image_and_inpainting_without_a_kept_cell_are_rejected(page):
    page.goto("/#/inpaint")
    page.get_by_test_id("upload").set_input_files(png_file(b"nothing"))
    expect(page.get_by_test_id("notice")).to_contain_text("this image cannot be read")
    page.get_by_test_id("upload").set_input_files(image_file())
    page.get_by_test_id("keep-none").click()
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("notice")).to_contain_text("No cell is kept")


def test_setting_a_token_and_undoing_it_changes_the_image(page):
    generate(page, candidates=1)
    page.get_by_test_id("candidate").click()
    page.get_by_test_id("to-tokens").click()
    cell, image = cell_at(page, 1, 2), page.locator(".token-grid img")
    before, source = cell.get_attribute("data-token"), image.get_attribute("src")
    other = str((int(before) + 5) % 12)
    cell.click()
    page.get_by_test_id("token-input").fill(other)
    page.keyboard.press("Enter")
    expect(cell).to_have_attribute("data-token", other)
    assert image.get_attribute("src") != source
    edited = decode_image(download(page))
    page.get_by_test_id("undo").click()
    expect(cell).to_have_attribute("data-token", before)
    assert image.get_attribute("src") == source
    page.get_by_test_id("redo").click()
    assert np.array_equal(decode_image(download(page)), edited)


def test_tokens_are_flipped_and_the_surprisal_is_shown(page):
    page.goto("/#/tokens")
    page.get_by_test_id("upload").set_input_files(image_file())
    expected = cell_at(page, 0, 3).get_attribute("data-token")
    page.get_by_test_id("flip").click()
    expect(cell_at(page, 0, 0)).to_have_attribute("data-token", expected)
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("surprisal-button").click()
    expect(page.get_by_test_id("heat-map")).to_be_visible()
    expect(page.get_by_test_id("least-likely")).to_have_count(5)


def test_the_gallery_keeps_an_entry_until_it_is_deleted(page):
    generate(page, "a caption of its own", candidates=2)
    page.goto("/#/gallery")
    item = page.get_by_test_id("gallery-item").filter(has_text="a caption of its own")
    expect(item).to_have_count(1)
    item.get_by_test_id("delete").click()
    page.get_by_test_id("confirm-yes").click()
    expect(item).to_have_count(0)


def test_a_seed_is_random_unless_it_is_fixed_and_the_same_request_is_kept_once(page, studio):
    def generate_again() -> str:
        page.evaluate("document.querySelector('[data-testid=candidate]')?.setAttribute('data-old', '')")
        page.get_by_test_id("generate-button").click()
        expect(page.locator("[data-testid=candidate]:not([data-old])")).to_have_count(1)
        wait_for_ranking(page, 1)
        return page.get_by_test_id("seed").input_value()

    page.get_by_test_id("caption").fill("a caption with seeds")
    page.get_by_test_id("candidates").fill("1")
    seeds = [generate_again(), generate_again()]
    assert seeds[0] != seeds[1] and f"seed={seeds[1]}" in page.url
    page.get_by_test_id("random-seed").click()
    assert [generate_again(), generate_again()] == [seeds[1]] * 2
    entries = studio.client.get("/api/gallery").json()["entries"]
    kept = [str(entry["seed"]) for entry in entries if entry["prompt"] == "a caption with seeds"]
    assert kept == seeds[::-1]


def test_entries_are_starred_downloaded_and_deleted_together(page, studio):
    for seed in range(3):
        studio.generate(prompt="one of three", candidates=2, seed=seed)
    page.goto("/#/gallery")
    items = page.get_by_test_id("gallery-item").filter(has_text="one of three")
    items.nth(1).get_by_test_id("star").click()
    expect(items.nth(1).get_by_test_id("star")).to_have_attribute("aria-pressed", "true")
    page.get_by_test_id("only-starred").click()
    expect(page.get_by_test_id("gallery-item")).to_have_count(1)
    page.get_by_test_id("only-starred").click()
    expect(items).to_have_count(3)
    for item in items.all():
        item.get_by_test_id("select-entry").check()
    expect(page.get_by_test_id("selected-count")).to_have_text("3 entries selected")
    with page.expect_download() as event:
        page.get_by_test_id("zip-selected").click()
    archive = zipfile.ZipFile(event.value.path())
    folders = ("one-of-three-seed-2", "one-of-three-2-seed-1", "one-of-three-3-seed-0")  # newest first
    assert archive.namelist() == [f"{folder}/00{rank}.png" for folder in folders for rank in range(2)]
    assert read_provenance(archive.read("one-of-three-2-seed-1/000.png")).seed == 1
    page.get_by_test_id("delete-selected").click()
    page.get_by_test_id("confirm-yes").click()
    expect(items).to_have_count(0)


def test_a_batch_fills_a_table_of_captions_and_values_of_a_setting(page):
    page.goto("/#/batch")
    page.get_by_test_id("caption").fill(
        f"{PROMPT}\n\n a caption of many words that no training caption has " + "at all " * 9
    )
    page.get_by_test_id("candidates").fill("2")
    page.get_by_test_id("vary").select_option("temperature")
    page.get_by_test_id("values").fill("0.5, -1")
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("field-error")).to_contain_text("greater than 0")
    expect(page.get_by_test_id("candidate")).to_have_count(1)
    page.get_by_test_id("values").fill("0.5 1")
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("4 of 4 generations, all of them in the gallery")
    expect(page.get_by_test_id("batch-results").locator("tbody tr")).to_have_count(2)
    expect(page.get_by_test_id("batch-results").locator("th[scope=col]")).to_have_text(
        ["Temperature 0.5", "Temperature 1"]
    )
    expect(page.get_by_test_id("truncated").last).to_contain_text("longer than those of training")
    page.get_by_test_id("candidate").nth(1).click()
    expect(page.get_by_test_id("image-dialog")).to_contain_text("1 of 2")
    page.get_by_test_id("close").click()
    page.goto("/#/gallery")
    card = page.get_by_test_id("gallery-item").filter(has_text="temperature 0.5").first
    card.get_by_test_id("use-again").click()
    expect(page.get_by_test_id("temperature")).to_have_value("0.5")


def test_shortcuts_open_their_list_and_views_and_generate(page):
    page.get_by_test_id("caption").blur()
    page.keyboard.press("?")
    expect(page.get_by_test_id("shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("5")
    expect(page.get_by_test_id("gallery-search")).to_be_visible()
    page.keyboard.press("1")
    page.get_by_test_id("caption").blur()
    page.keyboard.press("/")
    page.keyboard.type("5?")
    expect(page.get_by_test_id("caption")).to_have_value("5?")
    page.get_by_test_id("candidates").fill("1")
    page.keyboard.press("Control+Enter")
    wait_for_ranking(page, 1)


def test_the_page_is_translated_and_works_in_chinese(page):
    page.get_by_test_id("language").select_option("zh")
    expect(page.get_by_test_id("generate-button")).to_have_text("生成")
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("candidates").fill("2")
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("status")).to_contain_text("2 幅候选图，用时")
    page.get_by_test_id("candidate").first.click()
    expect(page.get_by_test_id("download")).to_have_text("下载")


def test_the_gallery_is_searched_by_image_content(page, studio):
    for seed in range(3):
        studio.generate(prompt=PROMPT, candidates=2, seed=seed)
    page.goto("/#/gallery")
    newest, nearest = (
        [entry["id"] for entry in studio.client.get("/api/gallery", params=query).json()["entries"]]
        for query in ({}, {"query": "a blue circle"})
    )
    assert sorted(nearest) == sorted(newest) and nearest != newest
    items = page.get_by_test_id("gallery-item")
    expect(items).to_have_count(len(newest))
    assert [item.get_attribute("data-id") for item in items.all()] == newest
    page.get_by_test_id("gallery-search").fill("a blue circle")
    page.get_by_test_id("search-button").click()
    expect(items.first).to_have_attribute("data-id", nearest[0])
    assert [item.get_attribute("data-id") for item in items.all()] == nearest


def test_the_dataset_is_searched_by_text_and_a_sample_finds_its_nearest_images(page):
    page.goto("/#/dataset")
    expect(page.get_by_test_id("dataset-item")).to_have_count(24)
    page.get_by_test_id("dataset-search").fill("a star")
    page.get_by_test_id("search-button").click()
    expect(page.get_by_test_id("dataset-item").first).to_be_visible()
    page.goto("/#/generate")
    generate(page, candidates=1)
    page.get_by_test_id("candidate").click()
    page.get_by_test_id("nearest").click()
    expect(page.get_by_test_id("nearest-result").locator("img").first).to_be_visible()


@pytest.mark.slow  # a registry of its own; test_studio_versions.py checks the operations
def test_two_versions_of_the_registry_generate_side_by_side(browser, project):
    studio = StudioProcess(project)
    try:
        with opened(studio, browser) as page:
            page.goto("/#/compare")
            page.get_by_test_id("version-left").select_option("1")
            page.get_by_test_id("version-right").select_option("2")
            page.get_by_test_id("caption").fill(PROMPT)
            page.get_by_test_id("candidates").fill("3")
            page.get_by_test_id("generate-button").click()
            expect(page.get_by_test_id("candidate")).to_have_count(6)
            first, second = page.locator(".generation").all()
            expect(first.get_by_test_id("status")).to_contain_text("best first")
            expect(second.get_by_test_id("status")).to_contain_text("best first")
            assert scores(first) == sorted(scores(first), reverse=True) and scores(first) != scores(second)
            page.goto("/#/generate")
            page.get_by_text("Settings").first.click()
            page.get_by_test_id("version").select_option("1")
            generate(page, candidates=3)
            assert scores(page) == [candidate["score"] for candidate in ranked_by_api(studio, "1")]
    finally:
        studio.stop()


def ranked_by_api(studio: StudioProcess, version: str) -> list[dict]:
    """The candidates that the API itself returns for the same request, best first."""
    _, *candidates, ranked = studio.generate(prompt=PROMPT, candidates=3, seed=0, version=version)
    return [candidates[number] for number in ranked["order"]]


def test_the_training_view_follows_a_run_of_another_process(page, studio):
    folder = studio.folder / "results/training/train_generator"
    lock = studio.folder / ".ckpt/locks/train_generator"
    page.goto("/#/training")
    expect(page.get_by_test_id("status")).to_contain_text("No training has run in this folder yet")
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"pid": os.getpid()}))
    folder.mkdir(parents=True)
    for step, image in ((10, 7), (20, 9)):
        row = {"step": step, "loss": 3.5 - step / 100, "validation/loss": 3.6}
        progress = {"stage": "train_generator", "step": step, "steps": 50, "seconds_left": 90}
        with open(folder / "curves.jsonl", "a") as curves:
            curves.write(json.dumps(row) + "\n")
        Image.new("RGB", (16 * image, 16), "teal").save(folder / f"step-0000{step}.png")
        (folder / "progress.json").write_text(json.dumps(progress | {"is_finished": False, "updated": 1}))
        status = f"Step {step} of 50 · about 2 min left"
        expect(page.get_by_test_id("training-status")).to_contain_text(status)
        shown = page.get_by_test_id("training-image")
        expect(shown).to_have_js_property("naturalWidth", 16 * image)
    expect(page.get_by_test_id("status")).to_contain_text("Running now: train_generator")
    expect(page.get_by_test_id("training-curve")).to_contain_text("held out 3.6")
    page.get_by_test_id("training-step").filter(has_text="10").click()
    expect(shown).to_have_js_property("naturalWidth", 16 * 7)
    lock.unlink()
    expect(page.get_by_test_id("training-status")).to_contain_text("stopped")


def test_every_operation_of_the_api_is_listed(page, studio):
    page.goto("/#/api")
    described = studio.client.get("/openapi.json").json()["paths"]
    expect(page.get_by_test_id("operation")).to_have_count(sum(map(len, described.values())))


@pytest.mark.parametrize("width", [360, 1440])
def test_no_view_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 740})
    for view in (
        "generate",
        "batch",
        "inpaint",
        "tokens",
        "gallery",
        "dataset",
        "compare",
        "training",
        "api",
    ):
        page.goto(f"/#/{view}")
        page.wait_for_load_state("networkidle")
        expect(page.locator("main h1, main label").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_a_stopped_server_is_reported_and_found_again(page):
    page.route("**/api/**", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    page.get_by_test_id("caption").fill(PROMPT)
    page.get_by_test_id("generate-button").click()
    expect(page.get_by_test_id("notice").or_(page.get_by_test_id("error-banner")).first).to_be_visible()
    page.unroute_all()
    page.get_by_test_id("generate-button").click()
    wait_for_ranking(page, 16)


def test_swagger_shows_the_operations_and_runs_one(page):
    page.goto("/docs")
    operation = page.locator(".opblock", has_text="/api/versions")
    operation.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text('"default": "package"')
    assert page.locator(".opblock").count() > 10
