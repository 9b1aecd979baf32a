"""Request handlers: candidates as they are finished, their ranking, token edits, reproduction."""

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

from studio.events import FieldError
from studio.worker import handlers
from tests.helpers.tiny_models import IMAGE_VOCAB_SIZE, flipped
from thousandwords.data.images import decode_png
from thousandwords.inference import token_editing
from thousandwords.inference.likelihood import likelihood_of_tokens
from thousandwords.inference.package import Package, load_package
from thousandwords.inference.provenance import Provenance, encode_png_with_provenance, read_provenance

PROMPT = "a small green star on sand"
SIDE = 4
GRID = torch.randint(IMAGE_VOCAB_SIZE, (SIDE, SIDE), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


def generate(package, prompt=PROMPT, candidates=4, seed=0, fixed_tokens=None, **changes):
    return list(handlers.generate(package, prompt, candidates, seed, fixed_tokens, changes))


def png(event: dict, name: str = "png") -> bytes:
    return base64.b64decode(event[name])


def pixels(event: dict, name: str = "png") -> np.ndarray:
    return decode_png(png(event, name))


# --- generation ---------------------------------------------------------------------------------------------


def test_candidates_come_in_order_and_then_their_ranking(package):
    started, *candidates, ranked = generate(package, candidates=11)
    assert started == {
        "event": "started",
        "fingerprint": package.fingerprint,
        "prompt": PROMPT,
        "candidates": 11,
        "seed": 0,
        "text_used": started["text_used"],
        "truncated": started["truncated"],
    }
    assert [event["candidate"] for event in candidates] == list(range(11))
    scores = [event["score"] for event in candidates]
    assert ranked["order"] == sorted(range(11), key=lambda number: -scores[number])


def test_the_studio_generates_what_the_package_generates(package):
    _, *candidates, _ = generate(package, candidates=3, seed=5)
    for candidate in package.generate(PROMPT, candidates=3, seed=5):
        event = candidates[candidate.candidate]
        assert sum(event["tokens"], []) == candidate.tokens.tolist()
        assert event["score"] == pytest.approx(candidate.score, abs=1e-5)
        # another batch size may change the last bit
        assert np.abs(pixels(event).astype(int) - candidate.image).max() <= 1


def test_every_event_is_json(package):
    for event in generate(package):
        assert json.loads(json.dumps(event, allow_nan=False)) == event


def test_an_image_is_reproduced_byte_for_byte(package):
    """Also one of a batch in the middle, without the batches before it."""
    _, *candidates, _ = generate(package, candidates=11, seed=2, temperature=0.9, top_k=7)
    for number in (0, 7, 10):
        data = png(candidates[number])
        answer = handlers.reproduce(package, read_provenance(data), data)
        assert answer["same"] and answer["same_pixels"] and png(answer) == data
        assert answer["tokens"] == candidates[number]["tokens"]
        assert answer["score"] == candidates[number]["score"]


def test_an_inpainted_image_keeps_its_fixed_tokens_and_is_reproduced(package):
    fixed_tokens = [row if number < 2 else [-1] * SIDE for number, row in enumerate(GRID)]
    _, *candidates, _ = generate(package, fixed_tokens=fixed_tokens)
    for event in candidates:
        assert event["tokens"][:2] == GRID[:2]
        assert handlers.reproduce(package, read_provenance(png(event)), png(event))["same"]


def test_a_file_that_another_program_saved_is_not_the_same(package):
    _, event, *_ = generate(package)
    provenance = read_provenance(png(event))
    buffer = io.BytesIO()
    Image.fromarray(pixels(event)).save(buffer, "PNG")
    answer = handlers.reproduce(package, provenance, buffer.getvalue())
    assert (answer["same"], answer["same_pixels"]) == (False, True)
    Image.fromarray(255 - pixels(event)).save(buffer := io.BytesIO(), "PNG")
    answer = handlers.reproduce(package, provenance, buffer.getvalue())
    assert (answer["same"], answer["same_pixels"]) == (False, False)


def test_a_caption_that_is_too_long_comes_with_the_text_that_is_used(package):
    started, *_ = generate(package, "a red square above a blue circle " * 9, candidates=1)
    assert (
        started["truncated"] and started["prompt"].startswith(started["text_used"]) and started["text_used"]
    )
    started, *_ = generate(package, "a red", candidates=1)
    assert not started["truncated"] and started["text_used"] == "a red"


@pytest.mark.parametrize("extra, is_truncated", [(0, False), (1, True)])
def test_a_caption_of_exactly_the_text_length_is_not_truncated(package, extra, is_truncated):
    tokenizer = package.text_tokenizer
    length = tokenizer.text_length + extra
    caption = next(text for n in range(99) if len(tokenizer.tokenize(text := "?" * n)) == length)
    assert handlers.text_used_of(package, caption)["truncated"] is is_truncated


# --- tokens -------------------------------------------------------------------------------------------------


def test_an_image_is_cropped_encoded_and_reconstructed(package):
    Image.new("RGB", (40, 20), (200, 30, 40)).save(buffer := io.BytesIO(), "JPEG")
    answer = handlers.encode_image(package, buffer.getvalue())
    assert pixels(answer).shape == pixels(answer, "reconstruction").shape == (16, 16, 3)
    assert answer["provenance"] is None and np.isfinite(answer["psnr"])
    decoded = handlers.edit_tokens(package, answer["tokens"], None, False, [])
    assert decoded["png"] == answer["reconstruction"]


def test_tokens_are_stitched_then_flipped_then_set(package):
    stitch = {"tokens": [[1] * SIDE] * SIDE, "columns": 1}
    answer = handlers.edit_tokens(package, GRID, stitch, True, [{"row": 0, "column": 0, "token": 5}])
    assert answer["tokens"][0] == [5, 1, 1, GRID[0][0]]
    assert answer["tokens"][1:] == [[1, 1, 1, row[0]] for row in GRID[1:]]


def test_bits_are_those_of_the_library(package):
    answer = handlers.likelihood(package, PROMPT, GRID)
    (expected,) = likelihood_of_tokens(package, PROMPT, torch.tensor(GRID).reshape(1, -1))
    assert answer["image_bits"] == pytest.approx(expected.image_bits, abs=1e-3)
    assert sum(map(sum, answer["bits"])) == pytest.approx(answer["image_bits"], abs=1e-2)
    assert answer["uniform_bits_per_token"] == pytest.approx(np.log2(IMAGE_VOCAB_SIZE), abs=1e-3)
    first = answer["least_likely"][0]
    assert first["bits"] == max(map(max, answer["bits"])) == answer["bits"][first["row"]][first["column"]]
    decoded = pixels(handlers.edit_tokens(package, GRID, None, False, []))
    heat_map = token_editing.heat_map(decoded, token_editing.as_grid(expected.image))
    assert (pixels(answer) == heat_map).all()


# --- rejected requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, field, message",
    [
        ({"prompt": " "}, "prompt", "the caption is empty. Say what to"),
        ({"prompt": "\ud800"}, "prompt", "the caption is not text in UTF-8"),
        ({"guidance": 2.0}, "guidance", "guidance is 2.0, but the generator"),
        ({"temperature": 0.0}, "temperature", "temperature is 0.0; it needs to be above 0"),
        ({"top_p": 2.0}, "top_p", "top_p is 2.0; it needs to be in (0, 1]"),
        (
            {"fixed_tokens": [[1]]},
            "fixed_tokens",
            "fixed_tokens must be 4 rows of 4 tokens each, the grid of this model's images",
        ),
        (
            {"fixed_tokens": [[99] * SIDE] * SIDE},
            "fixed_tokens",
            "fixed_tokens has tokens from 99 to 99; this model's tokens are from -1 to 11",
        ),
        (
            {"fixed_tokens": GRID},
            "fixed_tokens",
            "fixed_tokens fixes all tokens or none. Fix some of them, and set the others to -1",
        ),
        ({"fixed_tokens": [[-1] * SIDE] * SIDE}, "fixed_tokens", "fixed_tokens fixes all tokens or none"),
    ],
)
def test_a_generation_that_is_not_possible_is_rejected_before_it_begins(package, changes, field, message):
    with pytest.raises(FieldError) as caught:
        generate(package, **changes)
    assert caught.value.field == field and message in str(caught.value)


SET_TOKEN = {"row": 0, "column": 0, "token": 1}


@pytest.mark.parametrize(
    "send, field, message",
    [
        (
            lambda package: handlers.encode_image(package, b"GIF89a nothing"),
            "image",
            "this image cannot be read",
        ),
        (
            lambda package: handlers.edit_tokens(package, GRID, None, False, [SET_TOKEN | {"column": 4}]),
            "set",
            "no column 4",
        ),
        (
            lambda package: handlers.edit_tokens(package, GRID, {"tokens": GRID, "columns": 5}, False, []),
            "stitch",
            "5 columns",
        ),
        (
            lambda package: handlers.edit_tokens(
                package, GRID, {"tokens": GRID, "columns": 5}, False, [SET_TOKEN]
            ),
            "stitch",
            "5 columns",
        ),
        (
            lambda package: handlers.edit_tokens(package, GRID[:3], None, False, []),
            "tokens",
            "tokens must be 4 rows of 4 tokens each",
        ),
        (
            lambda package: handlers.likelihood(package, PROMPT, [[-1] * SIDE] * SIDE),
            "tokens",
            "tokens has tokens from -1 to -1",
        ),
        (lambda package: handlers.likelihood(package, "", GRID), "prompt", "the caption is empty"),
    ],
)
def test_an_error_names_its_field(package, send, field, message):
    with pytest.raises(FieldError) as caught:
        send(package)
    assert caught.value.field == field and message in str(caught.value)


def file_with(package, settings: dict | None = None, **changes) -> tuple[Provenance, bytes]:
    """A file of the package with a changed provenance, and that provenance."""
    data = png(generate(package, candidates=2)[1])
    original = read_provenance(data)
    changed_settings = dataclasses.replace(original.settings, **(settings or {}))
    provenance = dataclasses.replace(original, **changes, settings=changed_settings)
    return provenance, encode_png_with_provenance(decode_png(data), provenance)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"settings": {"candidates": 10**9, "batch_size": 10**9}},
            "1000000000 images were generated at a time; the maximum here is 64",
        ),
        (
            {"settings": {"guidance": 3.0}},
            "does not fit this model: sampling.guidance is 3.0, but the generator",
        ),
        ({"fixed_tokens": (1, -1)}, "does not fit this model: fixed_tokens is torch.int64 of shape (1, 2)"),
        ({"fixed_tokens": ()}, "does not fit this model: fixed_tokens is torch.int64 of shape (1, 0)"),
        ({"fixed_tokens": (99,) * SIDE**2}, "does not fit this model: fixed_tokens ha"),
        ({"caption": " "}, "does not fit this model: its caption is empty"),
    ],
)
def test_a_file_that_no_studio_generated_is_rejected_before_anything_is_generated(
    package, monkeypatch, changes, message
):
    provenance, data = file_with(package, **changes)
    monkeypatch.setattr(Package, "generate_batch", lambda *_: pytest.fail("a batch was generated"))
    with pytest.raises(FieldError) as caught:
        handlers.reproduce(package, provenance, data)
    assert caught.value.field == "image" and message in str(caught.value)


def test_a_file_of_many_candidates_in_small_batches_is_reproduced(package):
    provenance, data = file_with(package, settings={"candidates": 10**9})
    assert handlers.reproduce(package, provenance, data)["same"]


def test_an_image_with_damaged_pixels_is_rejected(package):
    provenance, data = file_with(package)
    with pytest.raises(FieldError, match="this image cannot be read: chunk b'IDAT' at byte"):
        handlers.reproduce(package, provenance, flipped(data, data.index(b"IDAT") + 20))


@given(st.lists(st.lists(st.integers(-2, 2**31 - 1), max_size=6), max_size=6))
def test_any_grid_is_tokens_or_is_rejected(package, grid):
    try:
        assert handlers.tokens_of(package, grid, "tokens").shape == (SIDE, SIDE)
    except FieldError as error:
        assert str(error).startswith("tokens ")
