"""Any caption has a spelling, and the spelling gives the caption back."""
from __future__ import annotations

import itertools
import json
import random
import tarfile
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import CAPTIONS, TEXT_LENGTH, TEXT_WORDS, flips, tiny_text
from thousandwords import text
from thousandwords.config import ConfigError, section
from thousandwords.files import DamagedArtefact

EMOJI = Path(__file__).parents[2] / "shared" / "data" / "emoji"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # lone surrogates are no text
TINY = tiny_text()
LONG = text.train(CAPTIONS * 3, text.Config(TEXT_WORDS, 2000))  # long enough to cut nothing


def round_trip(caption: str) -> str:
    return LONG.decode(LONG.encode([caption])[0])


# --- the form of captions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "normal"),
    [
        ("A Red  Star", "a red star"),
        (" \t a\nred\r\nstar\u00a0\u3000", "a red star"),
        ("A\u0308PFEL", "äpfel"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
        ("J\u030c", "ǰ"),
        ("\u3000", ""),
    ],
)
def test_a_caption_is_read_lower_cased_composed_and_with_single_spaces(caption, normal):
    assert text.normalise(caption) == normal


@given(ANY_TEXT)
def test_normalising_twice_changes_nothing_more(caption):
    once = text.normalise(caption)
    assert text.normalise(once) == once


@given(ANY_TEXT)
def test_letters_in_parts_and_letters_in_one_are_the_same_caption(caption):
    assert text.normalise(unicodedata.normalize("NFD", caption)) == text.normalise(caption)


# --- there and back --------------------------------------------------------------------------------------------------


@given(ANY_TEXT)
def test_any_text_comes_back_lower_cased(caption):
    assert round_trip(caption) == text.normalise(caption)


@pytest.mark.parametrize(
    "caption", ["🦊👩🏽‍🚀🏳️‍🌈 #️⃣", "一只红色的狐狸", "赤い星", "مفتاح #", "खुश चेहरा", "קשת", "ключ", "\x00\x07\u202e\u200d\ufeff"]
)
def test_emoji_scripts_and_control_characters_come_back(caption):
    assert round_trip(caption) == text.normalise(caption)


@pytest.fixture(scope="module")
def translations() -> list[str]:
    """Every emoji and its name in every language there is."""
    if not EMOJI.is_dir():
        pytest.skip("../shared/data/emoji is not here: no captions in other languages")
    captions = []
    for path in sorted(EMOJI.glob("*.tar")):
        with tarfile.open(path) as tar:
            records = [json.load(tar.extractfile(one)) for one in tar if one.name.endswith(".json")]
        captions += [caption for record in records for caption in (record["emoji"], *record["translations"].values())]
    return captions


@pytest.fixture(scope="module")
def bpe(translations) -> text.TextTokenizer:
    """A small vocabulary, of every seventh of the names: most are spelt from parts."""
    return text.train(translations[::7], text.Config(2000, 256))


def test_all_emoji_names_in_all_languages_come_back(translations, bpe):
    assert len(translations) > 50_000 and bpe.count_cut(translations) == 0
    for caption, row in zip(translations, bpe.encode(translations), strict=True):
        assert bpe.decode(row) == text.normalise(caption)


def test_all_emoji_names_have_the_librarys_words_without_dropout_and_come_back_with_it(translations, bpe):
    rng = np.random.default_rng(0)
    for caption in translations[::5]:
        assert bpe.words_with_dropout(caption, 0.0, rng) == bpe.words(caption)
        assert bpe.decode(torch.tensor(bpe.words_with_dropout(caption, 0.1, rng))) == text.normalise(caption)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_captions_become_rows_of_words_and_pads():
    tokens = TINY.encode(["a red star", "", "a small green star on sand"])

    assert tokens.shape == (3, TEXT_LENGTH) and tokens.dtype == torch.int64
    assert -1 <= tokens.min() and tokens.max() < TINY.vocab_size == TEXT_WORDS
    assert tokens[1].tolist() == [-1] * TEXT_LENGTH
    for row in tokens:
        count = int((row != -1).sum())
        assert (row[:count] >= 0).all() and (row[count:] == -1).all()


def test_pads_fill_a_row_and_the_end_is_cut():
    assert text.padded([[5, 9]], 4).tolist() == [[5, 9, -1, -1]]
    assert text.padded([[5, 9, 3]], 2).tolist() == [[5, 9]]
    assert text.padded([[]], 1).tolist() == [[-1]]


def test_captions_that_are_too_long_are_cut_and_counted():
    captions = ["a", "abcdefgh", "zyxwvut", "zyxwvuts", "zyxwvutsrqponm"]
    lengths = [len(TINY.words(caption)) for caption in captions]

    assert TINY.count_cut(captions) == sum(length > TEXT_LENGTH for length in lengths) == 2
    assert TINY.encode(captions)[4].tolist() == TINY.words(captions[4])[:TEXT_LENGTH]


def test_frequent_words_get_a_token_of_their_own():
    bpe = text.train(CAPTIONS * 3, text.Config(400, TEXT_LENGTH))
    assert len(bpe.words("square")) == 1 < len(bpe.words("hexagon"))


# --- BPE-dropout -----------------------------------------------------------------------------------------------------

WORDY = text.train(CAPTIONS * 3, text.Config(400, TEXT_LENGTH))  # words of many merges


@given(ANY_TEXT)
def test_without_dropout_our_words_are_the_librarys(caption):
    assert WORDY.words_with_dropout(caption, 0.0, np.random.default_rng(0)) == WORDY.words(caption)


@given(ANY_TEXT, st.floats(0, 1), st.integers(0, 2**32))
def test_every_spelling_gives_the_caption_back(caption, dropout, seed):
    words = WORDY.words_with_dropout(caption, dropout, np.random.default_rng(seed))
    assert WORDY.decode(torch.tensor(words)) == text.normalise(caption)
    assert len(words) >= len(WORDY.words(caption)) or dropout > 0


def test_with_all_merges_left_out_each_byte_is_a_word():
    assert len(WORDY.words_with_dropout("A red ★", 1.0, np.random.default_rng(0))) == len(" a red ★".encode())


def test_a_caption_has_many_spellings_and_each_follows_from_its_random_numbers():
    def spelling(seed: int) -> tuple[int, ...]:
        return tuple(WORDY.words_with_dropout(CAPTIONS[0], 0.1, np.random.default_rng(seed)))

    assert [spelling(seed) for seed in range(5)] == [spelling(seed) for seed in range(5)]
    assert len({spelling(seed) for seed in range(50)}) > 20
    assert tuple(WORDY.words(CAPTIONS[0])) in {spelling(seed) for seed in range(200)}


def test_each_merge_is_left_out_as_often_as_said():
    tokenizer, rng = merging(("a", "b")), np.random.default_rng(0)
    spellings = [tokenizer.words_with_dropout("ab", 0.3, rng) for _ in range(4000)]
    assert sum(words == [0, 1] for words in spellings) / 4000 == pytest.approx(0.3, abs=0.03)
    assert sum(words == [2] for words in spellings) / 4000 == pytest.approx(0.7, abs=0.03)


def test_a_merge_left_out_once_may_be_made_later():
    draws = iter([[0.0, 1.0], [1.0], []])  # of "aabb": aa out and bb kept; aa kept; nothing is left
    rng = SimpleNamespace(random=lambda count: np.array(next(draws)))
    assert merging(("a", "a"), ("b", "b")).words_with_dropout("aabb", 0.5, rng) == [2, 3]


def merging(*merges: tuple[str, str]) -> text.TextTokenizer:
    """A tokenizer of the words a, b, and one for each merge."""
    words = ["a", "b", *("".join(pair) for pair in merges)]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({word: number for number, word in enumerate(words)}, list(merges)))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return text.TextTokenizer(bpe, 8)


def test_rows_with_dropout_are_cut_and_filled_like_any():
    rngs = [np.random.default_rng(seed) for seed in range(3)]
    tokens = WORDY.encode_with_dropout(["a red star", "", "a small green star on sand"], 0.9, rngs)
    assert tokens.shape == (3, TEXT_LENGTH) and tokens.dtype == torch.int64
    assert tokens[1].tolist() == [-1] * TEXT_LENGTH and (tokens[2] >= 0).all()
    spelt = WORDY.words_with_dropout("a red star", 0.9, np.random.default_rng(0))
    assert tokens[:1].equal(text.padded([spelt], TEXT_LENGTH))


# --- training --------------------------------------------------------------------------------------------------------


def test_the_order_of_captions_does_not_matter():
    captions = [f"{size} {colour} {shape}" for size in "abcd" for colour in "pqrs" for shape in "wxyz"]  # all ties
    config = text.Config(vocab_size=270, text_length=8)
    first = text.train(captions, config).bpe.to_str()
    for seed in range(3):
        random.Random(seed).shuffle(captions)
        assert text.train(captions, config).bpe.to_str() == first


def test_upper_and_lower_case_train_the_same_words():
    shouted = [caption.upper() for caption in CAPTIONS]
    config = text.Config(TEXT_WORDS, TEXT_LENGTH)
    assert text.train(shouted, config).bpe.to_str() == text.train(CAPTIONS, config).bpe.to_str()


def test_no_captions_leave_the_256_bytes():
    assert text.train([], text.Config(300, 4)).vocab_size == 256


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"vocab_size": 255}, "text_tokenizer.vocab_size is 255; byte-level BPE needs 256 or more"),
        ({"text_length": 0}, "text_tokenizer.text_length is 0; a caption needs 1 or more"),
    ],
)
def test_sizes_too_small_for_any_text_are_refused(values, sentence):
    with pytest.raises(ConfigError) as caught:
        section(values, "text_tokenizer", text.Config)
    assert str(caught.value) == f"params.yaml: {sentence}"


def test_the_default_sizes_are_the_papers():
    assert text.Config() == text.Config(vocab_size=16384, text_length=256)


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_comes_back_the_same_under_its_fingerprint(tmp_path):
    fingerprint = text.save(TINY, tmp_path / "first")
    loaded = text.load(tmp_path / "first")

    assert loaded.fingerprint == fingerprint == text.save(TINY, tmp_path / "again")
    assert (loaded.vocab_size, loaded.text_length) == (TEXT_WORDS, TEXT_LENGTH)
    assert loaded.encode(CAPTIONS).equal(TINY.encode(CAPTIONS))
    assert loaded.decode(loaded.encode(["a red star"])[0]) == "a red star"


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "manifest.json"])
def test_a_tokenizer_with_one_flipped_bit_is_refused(tmp_path, name):
    text.save(TINY, tmp_path)
    for _ in flips(tmp_path / name, 20):
        with pytest.raises(DamagedArtefact, match=f"{name}.* Run: dvc repro train_text_tokenizer"):
            text.load(tmp_path)


# --- against the algorithm as it is written --------------------------------------------------------------------------


MANY = text.train(CAPTIONS * 3, text.Config(320, 16))


def merged_slowly(tokenizer: text.TextTokenizer, words: list[str], dropout: float, rng: np.random.Generator) -> list[str]:
    """Algorithm 1 of arXiv 1910.13267, all pairs looked at anew in each round, numbers drawn as one array."""
    while True:
        pairs = [(tokenizer._ranks.get(pair), place) for place, pair in enumerate(itertools.pairwise(words))]
        pairs = [pair for pair in pairs if pair[0] is not None]
        kept = list(itertools.compress(pairs, rng.random(len(pairs)) >= dropout)) if dropout else pairs
        if not kept:
            return words
        _, place = min(kept)
        words = [*words[:place], words[place] + words[place + 1], *words[place + 2 :]]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9])
@given(caption=st.text(st.sampled_from("abderst éÖ★ "), max_size=60), seed=st.integers(0, 2**32))
def test_spellings_are_those_of_the_algorithm_draw_by_draw(dropout, caption, seed):
    tokenizer, rng = MANY, np.random.default_rng(seed)
    parts = [part for part, _ in tokenizer.bpe.pre_tokenizer.pre_tokenize_str(text.normalise(caption))]
    wanted = [tokenizer._ids[word] for part in parts for word in merged_slowly(tokenizer, list(part), dropout, rng)]

    assert tokenizer.words_with_dropout(caption, dropout, np.random.default_rng(seed)) == wanted


@given(captions=st.lists(st.text(max_size=80), max_size=5))
def test_a_batch_of_captions_is_the_captions_one_by_one(captions):
    rows = [(MANY.words(caption) + [-1] * 16)[:16] for caption in captions]
    assert MANY.encode(captions).equal(torch.tensor(rows, dtype=torch.int64).reshape(-1, 16))
