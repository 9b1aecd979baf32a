"""Each translation of the studio's page has every string of its code and of index.html, and no other."""

import json
import re
from html.parser import HTMLParser

import pytest

from studio.api.routes import STATIC

LANGUAGES = sorted((STATIC / "languages").glob("*.json"))
VALUE = re.compile(r"\{\d\}")
# names of settings, metrics and curves, which `labelOf` and `translate` read from answers of the server
FROM_ANSWERS = {
    "Batch size", "Candidate", "Candidates", "Guidance", "Loss", "Package", "Precision", "Score", "Temperature",
    "Top k", "Top p", "training", "held out",
}  # fmt: skip
# names, and captions, which stay English like those that the models were trained on
UNTRANSLATED = {
    "API", "/openapi.json", "studio", "thousandwords", "thousandwords studio",
    "a small red star above a large blue square", "a small red star a large blue square on snow",
}  # fmt: skip


class Page(HTMLParser):
    """The texts and the labels of index.html."""

    def __init__(self) -> None:
        super().__init__()
        self.strings: set[str] = set()
        self.tag = ""
        self.feed((STATIC / "index.html").read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        self.strings |= {
            value for name, value in attributes if name in ("aria-label", "title", "placeholder")
        }

    def handle_data(self, data: str) -> None:
        if self.tag not in ("kbd", "code"):
            self.strings.add(data)

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""


def with_numbered_values(template: str) -> str:
    """${done} of ${f(total)} -> {0} of {1}"""
    key, number, depth = "", 0, 0
    for character in template:
        if character == "{":
            depth += 1
        if depth == 0:
            key += character
        if character == "}" and (depth := depth - 1) == 0:
            key, number = f"{key.removesuffix('$')}{{{number}}}", number + 1
    return key


def strings_of_the_page() -> set[str]:
    found = Page().strings
    for path in STATIC.rglob("*.js"):
        source = path.read_text()
        found |= {with_numbered_values(text) for text in re.findall(r"\bt`([^`]*)`", source)}
        for noun, plural in re.findall(r"pluralize\([^']+, '(\w+)'(?:, '(\w+)')?\)", source):
            found |= {f"{{0}} {noun}", f"{{0}} {plural or noun + 's'}"}
    found = {" ".join(text.split()) for text in found}
    return {text for text in found if re.search(r"[A-Za-z]{2}", VALUE.sub("", text))} - UNTRANSLATED


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_a_translation_has_every_string_of_the_page_with_its_values_and_no_other(path):
    translation, needed = json.loads(path.read_text()), strings_of_the_page() | FROM_ANSWERS
    assert needed - set(translation) == set()
    assert set(translation) - needed == set()
    for key, text in translation.items():
        assert sorted(VALUE.findall(key)) == sorted(VALUE.findall(text)), key
