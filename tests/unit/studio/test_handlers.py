"""What the models do for the studio: candidates as they come, their order, words in the hand, and a picture drawn again."""
from __future__ import annotations

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from studio import easel
from studio.easel import Asked
from tests.tiny import IMAGE_WORDS, flipped
from thousandwords import images, workbench
from thousandwords.likelihood import likelihood_of_words
from thousandwords.package import Package, load_package
from thousandwords.provenance import Provenance, provenance_of, with_provenance

PROMPT = "a small green star on sand"
SIDE = 4
GRID = torch.randint(IMAGE_WORDS, (SIDE, SIDE), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def drawn(package, prompt=PROMPT, candidates=4, seed=0, given=None, **changes):
    return list(easel.draw(package, prompt, candidates, seed, given, changes))


def png(event: dict, name: str = "png") -> bytes:
    return base64.b64decode(event[name])


def pixels(event: dict, name: str = "png") -> np.ndarray:
    return images.decode_png(png(event, name))


# --- drawing -----------------------------------------------------------------------------------------------------------


def test_candidates_come_in_order_and_then_their_ranking(package):
    started, *candidates, ranked = drawn(package, candidates=11)
    assert started == {"event": "started", "fingerprint": package.fingerprint, "prompt": PROMPT, "candidates": 11, "seed": 0,
                       "read": started["read"], "truncated": started["truncated"]}  # fmt: skip
    assert [one["candidate"] for one in candidates] == list(range(11))
    scores = [one["score"] for one in candidates]
    assert ranked["order"] == sorted(range(11), key=lambda one: -scores[one])


def test_the_studio_draws_what_the_package_draws(package):
    _, *candidates, _ = drawn(package, candidates=3, seed=5)
    for one in package.draw(PROMPT, candidates=3, seed=5):
        shown = candidates[one.candidate]
        assert sum(shown["words"], []) == one.tokens.tolist()
        assert shown["score"] == pytest.approx(one.score, abs=1e-5)
        assert np.abs(pixels(shown).astype(int) - one.picture).max() <= 1  # the batch may differ, and so the last bit


def test_every_event_is_json(package):
    for event in drawn(package):
        assert json.loads(json.dumps(event, allow_nan=False)) == event


def test_a_picture_that_was_shown_is_drawn_again_byte_for_byte(package):
    """Of a batch in the middle, and without those before it."""
    _, *candidates, _ = drawn(package, candidates=11, seed=2, temperature=0.9, top_k=7)
    for number in (0, 7, 10):
        data = png(candidates[number])
        again = easel.redraw(package, provenance_of(data), data)
        assert again["same"] and again["same_pixels"] and png(again) == data
        assert (again["words"], again["score"]) == (candidates[number]["words"], candidates[number]["score"])


def test_a_completed_picture_is_drawn_again_too_and_keeps_what_was_given(package):
    given = [row if number < 2 else [-1] * SIDE for number, row in enumerate(GRID)]
    _, *candidates, _ = drawn(package, given=given)
    for one in candidates:
        assert one["words"][:2] == GRID[:2]
        assert easel.redraw(package, provenance_of(png(one)), png(one))["same"]


def test_a_copy_that_somebody_saved_anew_is_told_from_the_file_that_was_made(package):
    _, one, *_ = drawn(package)
    facts = provenance_of(png(one))
    buffer = io.BytesIO()
    Image.fromarray(pixels(one)).save(buffer, "PNG")
    again = easel.redraw(package, facts, buffer.getvalue())
    assert (again["same"], again["same_pixels"]) == (False, True)
    Image.fromarray(255 - pixels(one)).save(buffer := io.BytesIO(), "PNG")
    again = easel.redraw(package, facts, buffer.getvalue())
    assert (again["same"], again["same_pixels"]) == (False, False)


def test_a_caption_that_is_too_long_says_what_of_it_is_read(package):
    started, *_ = drawn(package, "a red square above a blue circle " * 9, candidates=1)
    assert started["truncated"] and started["prompt"].startswith(started["read"]) and started["read"]
    started, *_ = drawn(package, "a red", candidates=1)
    assert not started["truncated"] and started["read"] == "a red"


@pytest.mark.parametrize("more, is_truncated", [(0, False), (1, True)])
def test_a_caption_of_just_as_many_words_as_are_read_is_whole(package, more, is_truncated):
    words = package.text_tokenizer
    caption = next(text for n in range(99) if len(words.words(text := "?" * n)) == words.text_length + more)
    assert easel.read_of(package, caption)["truncated"] is is_truncated


# --- words -------------------------------------------------------------------------------------------------------------


def test_a_picture_of_anybodys_is_cropped_and_becomes_words_and_a_picture_again(package):
    Image.new("RGB", (40, 20), (200, 30, 40)).save(buffer := io.BytesIO(), "JPEG")
    seen = easel.picture(package, buffer.getvalue())
    assert pixels(seen).shape == pixels(seen, "rebuilt").shape == (16, 16, 3)
    assert seen["provenance"] is None and np.isfinite(seen["psnr"])
    assert easel.words(package, seen["words"], None, False, [])["png"] == seen["rebuilt"]


def test_words_are_stitched_then_flipped_then_set(package):
    other = [[1] * SIDE] * SIDE
    made = easel.words(package, GRID, {"words": other, "columns": 1}, True, [{"row": 0, "column": 0, "word": 5}])
    assert made["words"][0] == [5, 1, 1, GRID[0][0]]
    assert made["words"][1:] == [[1, 1, 1, row[0]] for row in GRID[1:]]


def test_bits_are_those_of_the_library(package):
    told = easel.likelihood(package, PROMPT, GRID)
    (known,) = likelihood_of_words(package, PROMPT, torch.tensor(GRID).reshape(1, -1))
    assert told["picture_bits"] == pytest.approx(known.picture_bits, abs=1e-3)
    assert sum(map(sum, told["bits"])) == pytest.approx(told["picture_bits"], abs=1e-2)
    assert told["blind_bits_per_word"] == pytest.approx(np.log2(IMAGE_WORDS), abs=1e-3)
    worst = told["worst"][0]
    assert worst["bits"] == max(map(max, told["bits"])) == told["bits"][worst["row"]][worst["column"]]
    decoded = pixels(easel.words(package, GRID, None, False, []))
    assert (pixels(told) == workbench.heat_map(decoded, workbench.as_grid(known.image))).all()


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, field, said", [
    ({"prompt": " "}, "prompt", "the caption is empty. Say what to draw"),
    ({"prompt": "\ud800"}, "prompt", "the caption is not text in UTF-8"),
    ({"guidance": 2.0}, "guidance", "guidance is 2.0, but the generator never saw a hidden caption"),
    ({"temperature": 0.0}, "temperature", "temperature is 0.0; it needs to be above 0"),
    ({"top_p": 2.0}, "top_p", "top_p is 2.0; it needs to be in (0, 1]"),
    ({"given": [[1]]}, "given", "given should be 4 rows of 4 words each, as this model's pictures have"),
    ({"given": [[99] * SIDE] * SIDE}, "given", "given holds words from 99 to 99; this vocabulary runs from -1 to 11"),
    ({"given": GRID}, "given", "either all words are given or none is. Keep some cells, and leave some to be drawn"),
    ({"given": [[-1] * SIDE] * SIDE}, "given", "either all words are given or none is"),
])  # fmt: skip
def test_a_draw_that_cannot_be_is_refused_before_it_begins(package, changes, field, said):
    with pytest.raises(Asked) as caught:
        drawn(package, **changes)
    assert caught.value.field == field and said in str(caught.value)


@pytest.mark.parametrize("ask, field, said", [
    (lambda package: easel.picture(package, b"GIF89a nothing"), "picture", "this is no picture that can be"),
    (lambda package: easel.words(package, GRID, None, False, [{"row": 0, "column": 4, "word": 1}]), "set", "no column 4"),
    (lambda package: easel.words(package, GRID, {"words": GRID, "columns": 5}, False, []), "stitch", "5 columns cannot be taken"),
    (lambda package: easel.words(package, GRID, {"words": GRID, "columns": 5}, False, [{"row": 0, "column": 0, "word": 1}]),
     "stitch", "5 columns cannot be taken"),
    (lambda package: easel.words(package, GRID[:3], None, False, []), "words", "words should be 4 rows of 4 words each"),
    (lambda package: easel.likelihood(package, PROMPT, [[-1] * SIDE] * SIDE), "words", "words holds words from -1 to -1"),
    (lambda package: easel.likelihood(package, "", GRID), "prompt", "the caption is empty"),
])  # fmt: skip
def test_what_is_wrong_is_named_by_its_field(package, ask, field, said):
    with pytest.raises(Asked) as caught:
        ask(package)
    assert caught.value.field == field and said in str(caught.value)


def saying(package, settings: dict | None = None, **changes) -> tuple[Provenance, bytes]:
    """A file of the package's that says something else, and what it says."""
    data = png(drawn(package, candidates=2)[1])
    known = provenance_of(data)
    facts = dataclasses.replace(known, **changes, settings=dataclasses.replace(known.settings, **(settings or {})))
    return facts, with_provenance(images.decode_png(data), facts)


@pytest.mark.parametrize("changes, why", [
    ({"settings": {"candidates": 10**9, "batch_size": 10**9}}, "1000000000 were drawn at a time; 64 are the most here"),
    ({"settings": {"guidance": 3.0}}, "does not fit this model: sampling.guidance is 3.0, but the generator never saw"),
    ({"given": (1, -1)}, "does not fit this model: given is torch.int64 of shape (1, 2)"),
    ({"given": ()}, "does not fit this model: given is torch.int64 of shape (1, 0)"),
    ({"given": (99,) * SIDE**2}, "does not fit this model: given holds words 99..99"),
    ({"caption": " "}, "does not fit this model: its caption is empty"),
])  # fmt: skip
def test_a_file_that_says_what_no_studio_draws_is_refused_before_anything_is_drawn(package, monkeypatch, changes, why):
    facts, data = saying(package, **changes)
    monkeypatch.setattr(Package, "draw_part", lambda *_: pytest.fail("it was drawn"))
    with pytest.raises(Asked) as caught:
        easel.redraw(package, facts, data)
    assert caught.value.field == "picture" and why in str(caught.value)


def test_many_candidates_of_which_few_were_drawn_at_a_time_are_drawn_again(package):
    facts, data = saying(package, settings={"candidates": 10**9})
    assert easel.redraw(package, facts, data)["same"]


def test_a_picture_whose_pixels_are_damaged_is_not_drawn_again(package):
    facts, data = saying(package)
    with pytest.raises(Asked, match="this is no picture that can be used: chunk b'IDAT' at byte"):
        easel.redraw(package, facts, flipped(data, data.index(b"IDAT") + 20))


@given(st.lists(st.lists(st.integers(-2, 2**31 - 1), max_size=6), max_size=6))
def test_a_wild_grid_is_words_or_is_refused(package, grid):
    try:
        assert easel.words_of(package, grid, "words").shape == (SIDE, SIDE)
    except Asked as error:
        assert str(error).startswith("words ")
