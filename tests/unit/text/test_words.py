"""Words of texts in any script, and what of a prompt a model cannot use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thousandwords.text import bpe
from thousandwords.text.words import words

CAPTIONS = ["a red star", "a blue circle", "红色的星星", "a 🌵"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red, t-shirt (it's 3!)", ["a", "red", "t-shirt", "it's", "3"]),
        ("红色的星，red", ["红", "色", "的", "星", "red"]),
        ("赤い星", ["赤", "い", "星"]),
        ("빨간 별", ["빨간", "별"]),
        ("نجمة حمراء، صغيرة", ["نجمة", "حمراء", "صغيرة"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("🌵🦊 👩‍🚀 👍🏽 🇩🇪", ["🌵", "🦊", "👩‍🚀", "👍🏽", "🇩🇪"]),
        (" - … !", []),
    ],
)
def test_words_are_counted_by_script(text, expected):
    assert words(text) == expected


@given(st.text())
def test_words_are_parts_of_the_text_without_spaces(text):
    found = words(text)
    assert all(word and not any(character.isspace() for character in word) for word in found)
    assert words(" ".join(words(text))) == found


def test_a_tokenizer_keeps_the_words_of_its_training_captions(tmp_path):
    bpe.save(bpe.train(CAPTIONS, bpe.TextTokenizerConfig(300, 8)), tmp_path)
    tokenizer = bpe.load(tmp_path)
    assert tokenizer.unseen_words("A red xylophone, a red 蓝色 🦊 star") == ["xylophone", "蓝", "🦊"]
    assert tokenizer.describe_prompt("a red star") == []
    assert tokenizer.describe_prompt("a 🦊") == ["no training caption has: 🦊"]


def test_a_tokenizer_saved_without_words_still_loads_and_reports_none(tmp_path):
    tokenizer = bpe.train(CAPTIONS, bpe.TextTokenizerConfig(300, 8))
    tokenizer.known_words = None
    bpe.save(tokenizer, tmp_path)
    assert bpe.load(tmp_path).describe_prompt("a 🦊") == []


def test_a_prompt_longer_than_the_model_reads_comes_with_what_is_read():
    tokenizer = bpe.train(CAPTIONS, bpe.TextTokenizerConfig(300, 2))
    (note,) = tokenizer.describe_prompt("a red star a blue circle")
    start = 'the prompt is longer than the 2 tokens that the model reads. It reads only: "a'
    assert note.startswith(start) and note.endswith('"')
