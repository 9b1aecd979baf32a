"""Any caption can be tokenized, and its tokens decode to the caption; what of a prompt a model cannot use is said."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers.tiny_models import CAPTIONS, TEXT_LENGTH, TEXT_VOCAB_SIZE, tiny_text
from thousandwords.core.config import ConfigError, section
from thousandwords.text.bpe import TextTokenizer, TextTokenizerConfig, load, save, train
from thousandwords.text.normalize import normalize
from thousandwords.text.words import words

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # lone surrogates are not text
TINY = tiny_text()
LONG = train(CAPTIONS * 3, TextTokenizerConfig(TEXT_VOCAB_SIZE, 2000))  # long enough to truncate nothing


# --- normalization ------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "normalized"),
    [
        ("A Red  Star", "a red star"),
        (" \t a\nred\r\nstar\u00a0\u3000", "a red star"),
        ("A\u0308PFEL", "äpfel"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
        ("J\u030c", "ǰ"),
        ("\u3000", ""),
    ],
)
def test_a_caption_is_normalized_to_lower_case_composed_letters_and_single_spaces(caption, normalized):
    assert normalize(caption) == normalized


@given(ANY_TEXT)
def test_normalizing_twice_changes_nothing_more(caption):
    once = normalize(caption)
    assert normalize(once) == once


# --- round trip ------------------------------------------------------------


@given(ANY_TEXT)
@example("🦊👩🏽‍🚀🏳️‍🌈 #️⃣ 一只红色的狐狸 赤い星 مفتاح # खुश चेहरा קשת ключ")
@example("\x00\x07\u202e\u200d\ufeff")
def test_any_text_decodes_to_its_normalized_form(caption):
    assert LONG.decode(LONG.encode([caption])[0]) == normalize(caption)


# --- tokens ------------------------------------------------------------


@pytest.mark.paper("generator: sequence")
def test_captions_that_are_too_long_are_truncated_and_counted():
    captions = ["a", "abcdefgh", "zyxwvut", "zyxwvuts", "zyxwvutsrqponm"]
    lengths = [len(TINY.tokenize(caption)) for caption in captions]

    assert TINY.count_truncated(captions) == sum(length > TEXT_LENGTH for length in lengths) == 2
    assert TINY.encode(captions)[4].tolist() == TINY.tokenize(captions[4])[:TEXT_LENGTH]


# --- BPE-dropout ------------------------------------------------------------

MERGED = train(CAPTIONS * 3, TextTokenizerConfig(400, TEXT_LENGTH))  # tokens of many merges


@given(ANY_TEXT, st.floats(0, 1), st.integers(0, 2**32))
def test_every_tokenization_decodes_to_the_caption(caption, dropout, seed):
    tokens = MERGED.tokenize_with_dropout(caption, dropout, np.random.default_rng(seed))
    assert MERGED.decode(torch.tensor(tokens)) == normalize(caption)
    assert MERGED.tokenize_with_dropout(caption, 0.0, np.random.default_rng(seed)) == MERGED.tokenize(caption)


def test_rows_with_dropout_are_truncated_and_padded_like_any():
    rngs = [np.random.default_rng(seed) for seed in range(3)]
    tokens = MERGED.encode_with_dropout(["a red star", "", "a small green star on sand"], 0.9, rngs)
    assert tokens.shape == (3, TEXT_LENGTH) and tokens.dtype == torch.int64
    assert tokens[1].tolist() == [-1] * TEXT_LENGTH and (tokens[2] >= 0).all()
    expected = MERGED.tokenize_with_dropout("a red star", 0.9, np.random.default_rng(0))
    assert tokens[0].tolist() == (expected + [-1] * TEXT_LENGTH)[:TEXT_LENGTH]


# --- training ------------------------------------------------------------


def test_the_order_of_captions_does_not_matter():
    captions = list(map(" ".join, itertools.product("abcd", "pqrs", "wxyz")))  # all ties
    config = TextTokenizerConfig(vocab_size=270, text_length=8)
    first = train(captions, config).bpe.to_str()
    for seed in range(3):
        random.Random(seed).shuffle(captions)
        assert train(captions, config).bpe.to_str() == first


def test_no_captions_leave_the_256_bytes():
    assert train([], TextTokenizerConfig(300, 4)).vocab_size == 256


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"vocab_size": 255}, "text_tokenizer.vocab_size is 255; byte-level BPE needs 256 or more"),
        ({"text_length": 0}, "text_tokenizer.text_length is 0; a caption needs 1 or more"),
    ],
)
def test_sizes_too_small_for_any_text_are_rejected(values, sentence):
    with pytest.raises(ConfigError, match=f"params.yaml: {sentence}"):
        section(values, "text_tokenizer", TextTokenizerConfig)


# --- on disk ------------------------------------------------------------


def test_a_saved_tokenizer_loads_unchanged_with_its_fingerprint(tmp_path):
    fingerprint = save(TINY, tmp_path / "first")
    loaded = load(tmp_path / "first")

    assert loaded.fingerprint == fingerprint == save(TINY, tmp_path / "again")
    assert (loaded.vocab_size, loaded.text_length) == (TEXT_VOCAB_SIZE, TEXT_LENGTH)
    assert loaded.encode(CAPTIONS).equal(TINY.encode(CAPTIONS))
    assert loaded.decode(loaded.encode(["a red star"])[0]) == "a red star"


# --- against the published algorithm ------------------------------------------------------------


MANY = train(CAPTIONS * 3, TextTokenizerConfig(320, 16))


def merge_slowly(
    tokenizer: TextTokenizer, tokens: list[str], dropout: float, rng: np.random.Generator
) -> list[str]:
    """Algorithm 1 of arXiv 1910.13267: all pairs are checked in each round."""
    while True:
        ranks = map(tokenizer._ranks.get, itertools.pairwise(tokens))
        pairs = [(rank, index) for index, rank in enumerate(ranks) if rank is not None]
        allowed = list(itertools.compress(pairs, rng.random(len(pairs)) >= dropout)) if dropout else pairs
        if not allowed:
            return tokens
        _, index = min(allowed)
        tokens = [*tokens[:index], tokens[index] + tokens[index + 1], *tokens[index + 2 :]]


@pytest.mark.paper("generator: text noise")
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9, 1.0])
@given(caption=st.text(st.sampled_from("abderst éÖ★ "), max_size=60), seed=st.integers(0, 2**32))
def test_tokens_with_dropout_are_those_of_the_algorithm_for_the_same_random_numbers(dropout, caption, seed):
    tokenizer, rng = MANY, np.random.default_rng(seed)
    parts = [part for part, _ in tokenizer.bpe.pre_tokenizer.pre_tokenize_str(normalize(caption))]
    merged = [token for part in parts for token in merge_slowly(tokenizer, list(part), dropout, rng)]
    expected = [tokenizer._ids[token] for token in merged]
    assert tokenizer.tokenize_with_dropout(caption, dropout, np.random.default_rng(seed)) == expected


@given(captions=st.lists(st.text(max_size=80), max_size=5))
def test_a_batch_of_captions_is_encoded_like_single_captions(captions):
    rows = [(MANY.tokenize(caption) + [-1] * 16)[:16] for caption in captions]
    assert MANY.encode(captions).equal(torch.tensor(rows, dtype=torch.int64).reshape(-1, 16))


# --- words ------------------------------------------------------------

SCRIPTS = ["a red star", "a blue circle", "红色的星星", "a 🌵"]


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
    save(train(SCRIPTS, TextTokenizerConfig(300, 8)), tmp_path)
    tokenizer = load(tmp_path)
    assert tokenizer.unseen_words("A red xylophone, a red 蓝色 🦊 star") == ["xylophone", "蓝", "🦊"]
    assert tokenizer.describe_prompt("a red star") == []
    assert tokenizer.describe_prompt("a 🦊") == ["no training caption has: 🦊"]


def test_a_tokenizer_saved_without_words_still_loads_and_reports_none(tmp_path):
    tokenizer = train(SCRIPTS, TextTokenizerConfig(300, 8))
    tokenizer.known_words = None
    save(tokenizer, tmp_path)
    assert load(tmp_path).describe_prompt("a 🦊") == []


def test_a_prompt_longer_than_the_model_reads_comes_with_what_is_read():
    tokenizer = train(SCRIPTS, TextTokenizerConfig(300, 2))
    (note,) = tokenizer.describe_prompt("a red star a blue circle")
    start = 'the prompt is longer than the 2 tokens that the model reads. It reads only: "a'
    assert note.startswith(start) and note.endswith('"')
