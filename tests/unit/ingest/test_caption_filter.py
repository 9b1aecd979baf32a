"""Captions that are too short, boiler-plate or in another language are told apart from those worth learning from."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thousandwords import captions
from thousandwords.captions import REQUIREMENT, Rules, check_language, fault, language_shares, sift
from thousandwords.errors import UserError
from thousandwords.images import Refused

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/data"
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
ENGLISH = Rules(language="en", language_margin=0.2)

MONTHS = r"(jan|febr?|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)(uary|ruary|ch|il|ust|ember|ober)?\.?"
ALT_TEXT = (  # what web pages write where a description should be
    rf"^(photo|image|picture|shot)(graph)?(ed)?( was)?( taken| made)?( on| in)?( ([\d./:-]+(st|nd|rd|th)?|{MONTHS}),?)+$",
    r"^[a-z]{0,10}[\s_-]*\d[\d\s_-]*$",
    r"^\S+\.(jpe?g|png|gif|webp|tiff?|bmp|svg)$",
    r"https?://|\bwww\.",
    r"^(royalty[- ]free )?stock (photo|image|picture|illustration|vector)s?( image)?$",
    r"\b(click|tap) (here )?(to|for) (enlarge|zoom|view|larger|more|details)\b",
    r"^(no |add a )?(caption|description|image|photo|picture|thumbnail|logo|banner|icon|untitled)( available| here)?$",
    r"^(photo |image |picture )?(©|\(c\)|copyright|courtesy of|credit:?) ",
)


def reason(caption: str, **settings) -> str | None:
    found = fault(caption, Rules(**settings))
    return None if found is None else found.reason


# ---- too short


@pytest.mark.parametrize(("caption", "words"), [("cat", 1), ("a cat", 2), ("  a \t cat  on\n a mat ", 5), ("a red-nosed cat", 3),
                                                ("一只红色的狐狸", 1)])
def test_words_end_at_blanks(caption, words):
    assert reason(caption, min_words=words) is None
    assert reason(caption, min_words=words + 1) == "caption_too_short"


def test_a_short_caption_is_refused_with_both_numbers():
    with pytest.raises(Refused, match="caption_too_short: 2 of 3 words: 'a cat'"):
        sift(["a cat"], Rules(min_words=3))


# ---- boiler-plate


@pytest.mark.parametrize("caption", [
    "photographed on 3 may 1921", "Photographed on May 3rd, 1921", "Photo taken 2019-01-01", "Photo taken on 01/02/2019",
    "photograph  TAKEN in September 1943", "Picture was taken on 12. Feb. 1999", "IMG_1234", "img_1234.jpg", "DSC00042.JPG",
    "image 3", "20190101_120000", "my-holiday-2.jpeg", "Stock Photo", "royalty-free stock images", "Click to enlarge",
    "A blue car - click here for details", "See https://example.org/a", "www.example.org", "No image available", "thumbnail",
    "© 2019 somebody", "Photo courtesy of the museum",
])  # fmt: skip
def test_alt_text_without_a_description_is_boilerplate(caption):
    assert reason(caption, boilerplate=ALT_TEXT) == "boilerplate"


@pytest.mark.parametrize("caption", [
    "a red circle", "a cat on a fence, photographed on 3 may 1921", "a photograph of a march in may",
    "picture of 3 cats", "two men in stock with a photo of a dog", "2 dogs", "route 66 in arizona", "an icon of a saint",
    "photographed from above", "an image of a clicking clock", "a banner", "Car, Washington 1943, by the river",
])  # fmt: skip
def test_captions_that_describe_are_no_boilerplate(caption):
    assert reason(caption, boilerplate=ALT_TEXT) is None


def test_patterns_see_captions_lower_cased_with_single_blanks_and_may_be_written_in_capitals():
    assert reason("Photographed   ON\tMonday", boilerplate=("photographed on monday",)) == "boilerplate"
    assert reason("photographed on monday", boilerplate=("^Photographed ON",)) == "boilerplate"


def test_boilerplate_is_refused_with_the_pattern_that_was_found():
    with pytest.raises(Refused, match=re.escape("boilerplate: has '^photo': 'Photo taken 2019-01-01'")):
        sift(["Photo taken 2019-01-01"], Rules(boilerplate=("cat", "^photo")))


@needs_shared_data
def test_hardly_any_caption_that_people_wrote_is_boilerplate():
    written = gzip.decompress((SHARED / "captions.txt.gz").read_bytes()).decode().splitlines()[::10]
    assert sum(reason(caption, boilerplate=ALT_TEXT) is not None for caption in written) <= len(written) / 1000


# ---- language


@pytest.mark.parametrize("caption", [
    "a red circle on a blue background", "A cat sits on the mat.", "photographed on 3 may 1921", "a cat", "dog", "man surfing",
    "2", "123 456", "…", "#",
])  # fmt: skip
def test_english_and_what_no_one_can_tell_stay(caption):
    assert fault(caption, ENGLISH) is None


@pytest.mark.parametrize(("caption", "language"), [
    ("Ein roter Kreis liegt auf dem Tisch.", "de"), ("un chat noir dort sur le canapé", "fr"), ("ключ лежит на столе", "ru"),
    ("一只红色的狐狸坐在草地上", "zh"), ("赤い星の上に青い円があります", "ja"),
    ("un hombre con un sombrero negro en la playa", "es"), ("🦊👩🏽‍🚀", "zxx"),  # zxx: no language at all (ISO 639-2)
])  # fmt: skip
def test_captions_in_another_language_are_left_out(caption, language):
    assert fault(caption, ENGLISH).reason == "wrong_language"
    assert fault(caption, Rules(language=language, language_margin=0.2)) is None


def test_the_refusal_says_which_language_it_looks_like():
    with pytest.raises(Refused, match=re.escape("wrong_language: de 0.99, en 0.00: 'ein roter kreis liegt auf dem tisch'")):
        sift(["ein roter kreis liegt auf dem tisch"], ENGLISH)


def test_a_smaller_margin_leaves_out_more():
    assert language_shares("a cat")["gl"] > language_shares("a cat")["en"]
    assert reason("a cat", language="en", language_margin=0.0) == "wrong_language"
    assert reason("a cat", language="en", language_margin=0.1) is None


def test_shares_of_languages_add_up_to_one_and_repeat():
    shares = language_shares("a red circle")
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4) and max(shares, key=shares.get) == "en"
    captions._identifier.cache_clear()
    assert language_shares("a red circle") == shares


def emoji_names(language: str) -> list[str]:
    with tarfile.open(SHARED / "emoji/emoji-000000.tar") as tar:
        records = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    return [record["translations"][language] for record in records if language in record["translations"]]


@needs_shared_data
def test_of_english_photo_captions_fewer_than_one_in_a_hundred_is_lost():
    with open(SHARED / "photos/fsa-color/captions.tsv", encoding="utf-8") as file:
        written = [row["caption"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(written) == 1615 and sum(fault(caption, ENGLISH) is not None for caption in written) < 16


@needs_shared_data
@pytest.mark.parametrize("language", ["de", "es", "fr", "ru", "tr", "ar", "ko"])
def test_of_names_of_four_words_in_other_languages_nine_in_ten_are_found(language):
    names = [name for name in emoji_names(language) if len(name.split()) >= 4][:150]
    assert len(names) >= 40
    assert sum(fault(name, ENGLISH) is not None for name in names) >= 0.9 * len(names)


def test_an_unknown_language_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"data.language is 'xx'; it can be: ace, af, am, .*, en, .*, zu"):
        check_language("xx")


@pytest.fixture
def without_the_library(monkeypatch):
    for name in ("py3langid", "py3langid.langid"):
        monkeypatch.setitem(sys.modules, name, None)
    captions._identifier.cache_clear()
    yield
    captions._identifier.cache_clear()


def test_a_missing_library_is_named_with_the_command_that_installs_it(without_the_library):
    message = (r"data.language needs the package py3langid, which is not installed. "
               r"Run: pip install 'py3langid>=0.4,<0.5', or leave data.language out")  # fmt: skip
    with pytest.raises(UserError, match=re.escape(message)):
        check_language("en")


def test_without_a_language_the_library_is_not_needed(without_the_library):
    check_language(None)
    assert sift(["a cat"], Rules(min_words=2, boilerplate=("dog",))) == (("a cat",), ())


def test_the_command_installs_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert REQUIREMENT in project["optional-dependencies"]["pipeline"]
    assert not [name for name in project["dependencies"] if "langid" in name]


# ---- sifting

SIFTED = Rules(min_words=2, boilerplate=("^photo",), language="en", language_margin=0.2)
CASES = {"a kite on a hill": None, "the blue house by the sea": None, "kite": "caption_too_short",
         "Photo taken 2019-01-01": "boilerplate", "ein roter drachen fliegt über den hügel": "wrong_language"}


def test_what_is_wrong_in_several_ways_is_named_by_what_is_cheapest_to_see():
    assert fault("photographie", SIFTED).reason == "caption_too_short"
    assert fault("photographie d'un chat noir sur le canapé", SIFTED).reason == "boilerplate"


@given(st.lists(st.sampled_from(sorted(CASES)), min_size=1, max_size=6))
def test_each_caption_stays_or_has_a_reason_and_order_is_kept(drawn):
    stay = tuple(caption for caption in drawn if CASES[caption] is None)
    if not stay:
        with pytest.raises(Refused) as problem:
            sift(drawn, SIFTED)
        assert problem.value.reason == CASES[drawn[0]]
        return
    assert sift(drawn, SIFTED) == (stay, tuple(CASES[caption] for caption in drawn if CASES[caption]))


@given(st.lists(st.text(min_size=1), min_size=1))
def test_without_rules_every_caption_stays(drawn):
    assert not Rules(language_margin=0.5) and sift(drawn, Rules()) == (tuple(drawn), ())


@given(st.text(max_size=80))
def test_any_text_can_be_judged(caption):
    fault(caption, Rules(min_words=1, boilerplate=ALT_TEXT, language="en"))


def test_a_reason_is_one_of_those_that_are_counted():
    assert set(captions.REASONS) == {reason for reason in CASES.values() if reason}
