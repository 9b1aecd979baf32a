"""The human evaluation sheet in a browser: votes by click and by key, saved as a CSV file."""

import pytest

from tests.helpers.browser import expect
from tests.helpers.two_runs import write_run
from thousandwords.reporting.finished_run import read_run
from thousandwords.reporting.human_eval_sheet import make_sheet
from thousandwords.reporting.human_eval_votes import read_votes

CAPTIONS = ["a cat", "a hill", "a red star"]


@pytest.fixture
def sheet(browser, tmp_path):
    """A sheet of three prompts in a browser, and its key; the page makes no request and reports no error."""
    runs = [
        read_run(write_run(tmp_path / name, CAPTIONS, gray), name) for name, gray in (("a", 10), ("b", 100))
    ]
    html, key = make_sheet(*runs, num_prompts=3, seed=7)
    (tmp_path / "sheet.html").write_text(html, encoding="utf-8")
    context, messages, requests = browser.new_context(viewport={"width": 375, "height": 740}), [], []
    page = context.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url[:5]))
    page.goto(f"file://{tmp_path}/sheet.html")
    yield page, key
    context.close()
    assert messages == [] and set(requests) <= {"file:", "data:"}


def test_votes_in_a_browser_are_saved_as_they_were_given(sheet, tmp_path):
    """By click and by key, with a step back and a reload in between: always run a for realism, b for the caption."""
    page, key = sheet
    page.fill("#rater", 'Zoë "Z"; =1')
    page.keyboard.press("Enter")
    choices = [(prompt, run) for prompt in key["prompts"] for run in ("a", "b")]
    for number, (prompt, run) in enumerate(choices):
        expect(page.locator("#count")).to_have_text(f"{number} of 6 votes")
        side = "left" if prompt["left"] == run else "right"
        if number % 2:
            page.keyboard.press(f"Arrow{side.capitalize()}")
        else:
            page.click(f"#{side}")
        if number == 3:
            page.reload()
            page.click("#back")
            expect(page.locator(f"#{side}")).to_have_attribute("aria-pressed", "true")
            page.click("#next")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "votes.csv")
    votes = read_votes([tmp_path / "votes.csv"], key)
    assert {(vote.rater, vote.question, vote.run) for vote in votes} == {
        ('Zoë "Z"; =1', "realism", "a"),
        ('Zoë "Z"; =1', "caption", "b"),
    }
    assert len(votes) == 6
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_right_to_left_caption_begins_at_the_right(sheet):
    """Its comma, which has no direction of its own, stands at the left end."""
    page, _ = sheet
    page.fill("#rater", "Zoë")
    page.keyboard.press("Enter")
    places = """text => {
        const caption = document.querySelector("#caption");
        caption.textContent = text;
        return [0, text.length - 1].map(at => {
            const range = document.createRange();
            range.setStart(caption.firstChild, at);
            range.setEnd(caption.firstChild, at + 1);
            return range.getBoundingClientRect().left;
        });
    }"""
    first, last = page.evaluate(places, "قطة حمراء,")
    assert first > last
    first, last = page.evaluate(places, "a red cat,")
    assert first < last
