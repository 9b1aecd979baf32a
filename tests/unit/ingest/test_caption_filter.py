"""Captions that are too short, boilerplate or in another language are filtered, others are not."""

import csv
import re
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.paths import ROOT, SHARED
from thousandwords.core.errors import InvalidInput, UserError
from thousandwords.ingest import caption_filter
from thousandwords.ingest.caption_filter import CaptionRules, caption_problem, check_language, filter_captions
from thousandwords.planning.presets import read_preset

WRITTEN_CAPTIONS = SHARED / "data/photos/fsa-color/captions.tsv"
ENGLISH = CaptionRules(language="en", language_margin=0.2)
ALL_RULES = CaptionRules(min_words=2, boilerplate=("^photo",), language="en", language_margin=0.2)
ALT_TEXT = tuple(read_preset("paper", ROOT / "presets")["data"]["boilerplate"])


def reason(caption: str, **settings) -> str | None:
    problem = caption_problem(caption, CaptionRules(**settings))
    return problem and problem.reason


def captions_of(block: str) -> list[str]:
    return re.split(r"[|\n]", block.strip())


WORDS = {
    "cat": 1,
    "a cat": 2,
    "  a \t cat  on\n a mat ": 5,
    "a red-nosed cat": 3,
    "一只红色的狐狸": 7,
    "🌵🦊": 2,
}


@pytest.mark.parametrize(("caption", "words"), WORDS.items())
def test_words_are_counted_by_script(caption, words):
    assert reason(caption, min_words=words) is None
    assert reason(caption, min_words=words + 1) == "caption_too_short"


@pytest.mark.paper("evaluation: data filter")
@pytest.mark.parametrize(
    ("caption", "rules", "message"),
    [
        ("a cat", CaptionRules(min_words=3), "caption_too_short: 2 of 3 words: 'a cat'"),
        ("Photo of 1999", CaptionRules(boilerplate=("cat", "^photo")), "boilerplate: has '^photo': 'Photo of 1999'"),
        ("ein roter kreis auf dem tisch", ENGLISH, "wrong_language: de 0.9\\d, en 0.00: 'ein roter kreis auf dem tisch'"),
        ("photographie", ALL_RULES, "caption_too_short: 1 of 2"),  # the cheapest check comes first
        ("photographie d'un chat noir sur le canapé", ALL_RULES, "boilerplate: has '^photo'"),
    ],
)  # fmt: skip
def test_a_caption_is_rejected_with_the_reason_and_what_was_found(caption, rules, message):
    with pytest.raises(InvalidInput, match=message.replace("^", r"\^")):
        filter_captions([caption], rules)


BOILERPLATE = """
photographed on 3 may 1921|Photo taken 2019-01-01|Picture was taken on 12. Feb. 1999|IMG_1234|DSC00042.JPG
my-holiday-2.jpeg|Stock Photo|Click to enlarge|See https://example.org/a|No image available|© 2019 somebody
Photo courtesy of the museum
"""
DESCRIPTIONS = """
a red circle|a cat on a fence, photographed on 3 may 1921|a photograph of a march in may|picture of 3 cats
two men in stock with a photo of a dog|an image of a clicking clock|Car, Washington 1943, by the river
"""


@pytest.mark.paper("evaluation: data filter")
@pytest.mark.parametrize("caption", captions_of(BOILERPLATE))
def test_alt_text_without_a_description_is_boilerplate(caption):
    assert reason(caption, boilerplate=ALT_TEXT) == "boilerplate"


@pytest.mark.parametrize("caption", captions_of(DESCRIPTIONS))
def test_captions_that_describe_are_not_boilerplate(caption):
    assert reason(caption, boilerplate=ALT_TEXT) is None


def test_patterns_match_normalized_captions_in_any_case():
    assert reason("Photographed   ON\tMonday", boilerplate=("photographed on monday",)) == "boilerplate"
    assert reason("photographed on monday", boilerplate=("^Photographed ON",)) == "boilerplate"


AMBIGUOUS = "a red circle on a blue background|A cat sits on the mat.|photographed on 3 may 1921|a cat|2|#"


@pytest.mark.parametrize("caption", captions_of(AMBIGUOUS))
def test_english_and_ambiguous_captions_stay(caption):
    assert caption_problem(caption, ENGLISH) is None


@pytest.mark.paper("evaluation: data filter")
@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("Ein roter Kreis liegt auf dem Tisch.", "de"),
        ("un chat noir dort sur le canapé", "fr"),
        ("ключ лежит на столе", "ru"),
        ("一只红色的狐狸坐在草地上", "zh"),
        ("赤い星の上に青い円があります", "ja"),
        ("un hombre con un sombrero negro en la playa", "es"),
        ("🦊👩🏽‍🚀", "zxx"),  # zxx: no language at all (ISO 639-2)
    ],
)
def test_captions_in_another_language_are_dropped(caption, language):
    assert caption_problem(caption, ENGLISH).reason == "wrong_language"
    assert caption_problem(caption, CaptionRules(language=language, language_margin=0.2)) is None


def test_a_smaller_margin_drops_more():
    assert reason("a cat", language="en", language_margin=0.0) == "wrong_language"  # it could be Galician
    assert reason("a cat", language="en", language_margin=0.1) is None


@pytest.mark.skipif(not WRITTEN_CAPTIONS.exists(), reason="../shared/data is absent")
def test_fewer_than_one_in_a_hundred_english_captions_is_dropped():
    with open(WRITTEN_CAPTIONS, encoding="utf-8") as file:
        written = [row["caption"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    dropped = sum(caption_problem(caption, ENGLISH) is not None for caption in written)
    assert len(written) == 1615 and dropped < 16


@pytest.fixture
def without_the_library(monkeypatch):
    for name in ("py3langid", "py3langid.langid"):
        monkeypatch.setitem(sys.modules, name, None)
    caption_filter._identifier.cache_clear()
    yield
    caption_filter._identifier.cache_clear()


def test_a_missing_library_is_reported_with_the_install_command(without_the_library):
    message = (
        "the package py3langid, which is not installed. Run: pip install 'py3langid>=0.4,<0.5', or remove"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        check_language(CaptionRules(language="en"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert caption_filter.REQUIREMENT in project["optional-dependencies"]["pipeline"]
    assert not [name for name in project["dependencies"] if "langid" in name]


def test_without_a_language_the_library_is_not_needed(without_the_library):
    check_language(CaptionRules())
    assert filter_captions(["a cat"], CaptionRules(min_words=2, boilerplate=("dog",))) == (("a cat",), ())


@given(st.text(max_size=80))
def test_any_text_can_be_checked(caption):
    caption_problem(caption, CaptionRules(min_words=1, boilerplate=ALT_TEXT, language="en"))
