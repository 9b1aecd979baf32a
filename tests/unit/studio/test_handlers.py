"""Request handlers: candidates as they are finished, their ranking, token edits, reproduction."""

import base64
import dataclasses
import io
import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from studio.api import schema
from studio.worker import handlers
from studio.worker.process import FieldError
from tests.helpers.tiny_models import IMAGE_VOCAB_SIZE, fitting_package, tiny, two_grids
from thousandwords.data.images import decode_png, encode_png
from thousandwords.inference import token_editing
from thousandwords.inference.likelihood import likelihood_of_tokens
from thousandwords.inference.package import Package, load_package
from thousandwords.inference.provenance import encode_png_with_provenance, read_provenance

PROMPT = "a small green star on sand"
SIDE = 4
GRID = torch.randint(IMAGE_VOCAB_SIZE, (SIDE, SIDE), generator=torch.Generator().manual_seed(0)).tolist()


def generate(package, prompt=PROMPT, candidates=4, seed=0, fixed_tokens=None, **changes):
    return list(handlers.generate(package, prompt, candidates, seed, fixed_tokens, changes))


def png(event: dict, name: str = "png") -> bytes:
    return base64.b64decode(event[name])


def pixels(event: dict, name: str = "png") -> np.ndarray:
    return decode_png(png(event, name))


def test_candidates_come_in_order_and_then_their_ranking(package):
    events = started, *candidates, ranked = generate(package, candidates=11, seed=5)
    assert json.loads(json.dumps(events, allow_nan=False)) == events
    expected = {"event": "started", "fingerprint": package.fingerprint, "prompt": PROMPT, "candidates": 11}
    expected |= {"seed": 5, "unseen_words": []}
    assert started == expected | {name: started[name] for name in ("text_used", "truncated")}
    assert [event["candidate"] for event in candidates] == list(range(11))
    scores = [event["score"] for event in candidates]
    assert ranked["order"] == sorted(range(11), key=lambda number: -scores[number])
    for candidate in package.generate(PROMPT, candidates=11, seed=5):
        event = candidates[candidate.candidate]
        assert sum(event["tokens"], []) == candidate.tokens.tolist()
        assert event["score"] == pytest.approx(candidate.score, abs=1e-5)
        # another batch size may change the last bit
        assert np.abs(pixels(event).astype(int) - candidate.image).max() <= 1


def test_an_inpainted_image_keeps_its_fixed_tokens_and_is_reproduced(package):
    fixed_tokens = [row if number < 2 else [-1] * SIDE for number, row in enumerate(GRID)]
    _, *candidates, _ = generate(package, fixed_tokens=fixed_tokens)
    for event in candidates:
        assert event["tokens"][:2] == GRID[:2]
        assert handlers.reproduce(package, png(event))["same"]


@pytest.mark.parametrize("change, same_pixels", [(lambda array: array, True), (lambda array: ~array, False)])
def test_a_file_that_another_program_saved_is_not_the_same(package, change, same_pixels):
    _, event, *_ = generate(package)
    chunks = PngImagePlugin.PngInfo()
    for keyword, text in Image.open(io.BytesIO(png(event))).text.items():
        chunks.add_itxt(keyword, text)
    image = Image.fromarray(change(pixels(event)))
    image.save(buffer := io.BytesIO(), "PNG", pnginfo=chunks, compress_level=0)
    answer = handlers.reproduce(package, buffer.getvalue())
    assert (answer["same"], answer["same_pixels"]) == (False, same_pixels)


@pytest.mark.parametrize("extra, is_truncated", [(0, False), (1, True)])
def test_a_caption_that_is_too_long_comes_with_the_text_that_is_used(package, extra, is_truncated):
    tokenizer = package.text_tokenizer
    length = tokenizer.text_length + extra
    caption = next(text for n in range(99) if len(tokenizer.tokenize(text := "?" * n)) == length)
    started, *_ = generate(package, caption, candidates=1)
    assert started["truncated"] is is_truncated
    assert (started["text_used"] == caption) is not is_truncated and caption.startswith(started["text_used"])


def test_an_image_is_cropped_encoded_and_reconstructed(package):
    Image.new("RGB", (40, 20), (200, 30, 40)).save(buffer := io.BytesIO(), "JPEG")
    answer = handlers.encode_image(package, buffer.getvalue())
    assert pixels(answer).shape == pixels(answer, "reconstruction").shape == (16, 16, 3)
    assert answer["provenance"] is None and answer["caption"] is None and np.isfinite(answer["psnr"])
    decoded = handlers.edit_tokens(package, answer["tokens"], None, False, [])
    assert decoded["png"] == answer["reconstruction"]


def test_an_image_comes_with_the_caption_that_the_captioner_of_the_package_writes(package):
    captioner = tiny("captioners", "cross_attention")
    captioner.header = {"captions": {"candidates": 2, "top_p": 0.9}}
    with_captioner = dataclasses.replace(package, captioner=captioner)
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    answer = handlers.encode_image(with_captioner, encode_png(image))
    assert answer["caption"] == with_captioner.caption([image])[0]


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


FAR_STITCH = {"tokens": GRID, "columns": 5}
FAR_TOKEN = {"row": 0, "column": 4, "token": 1}
NO_TOKENS = [[-1] * SIDE] * SIDE


def fixing(grid: list):
    return partial(generate, fixed_tokens=grid)


@pytest.mark.parametrize(
    "handler, fields, field, message",
    [
        (generate, [" "], "prompt", "the caption is empty. Say what to"),
        (generate, ["\ud800"], "prompt", "the caption is not text in UTF-8"),
        (partial(generate, guidance=2.0), [], "guidance", "guidance is 2.0, but the generator"),
        (partial(generate, temperature=0.0), [], "temperature", "temperature is 0.0; it needs to be above 0"),
        (fixing([[1]]), [], "fixed_tokens", "fixed_tokens must be 4 rows of 4 tokens each, the grid"),
        (
            fixing([[99] * 4] * 4),
            [],
            "fixed_tokens",
            "has tokens from 99 to 99; this model's tokens are from",
        ),
        (fixing(GRID), [], "fixed_tokens", "fixes all tokens or none. Fix some of them, and set the other"),
        (fixing(NO_TOKENS), [], "fixed_tokens", "fixed_tokens fixes all tokens or none"),
        (handlers.edit_tokens, [GRID, None, False, [FAR_TOKEN]], "set", "no column 4"),
        (handlers.edit_tokens, [GRID, FAR_STITCH, False, [FAR_TOKEN]], "stitch", "5 columns"),
        (handlers.edit_tokens, [GRID[:3], None, False, []], "tokens", "tokens must be 4 rows of 4 tokens"),
        (handlers.likelihood, [PROMPT, NO_TOKENS], "tokens", "tokens has tokens from -1 to -1"),
        (handlers.likelihood, ["", GRID], "prompt", "the caption is empty"),
    ],
)
def test_an_impossible_request_is_rejected_with_the_name_of_its_field(
    package, handler, fields, field, message
):
    with pytest.raises(FieldError) as caught:
        handler(package, *fields)
    assert caught.value.field == field and message in str(caught.value)


def file_with(package, settings: dict | None = None, **changes) -> bytes:
    """A file of the package with a changed provenance."""
    data = png(generate(package, candidates=2)[1])
    original = read_provenance(data)
    changed_settings = dataclasses.replace(original.settings, **(settings or {}))
    provenance = dataclasses.replace(original, **changes, settings=changed_settings)
    return encode_png_with_provenance(decode_png(data), provenance)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"settings": {"candidates": 99, "batch_size": 99}}, "99 images were generated at a time; the"),
        ({"settings": {"guidance": 3.0}}, "does not fit this model: sampling.guidance is 3.0, but the gener"),
        ({"fixed_tokens": ()}, "does not fit this model: fixed_tokens is torch.int64 of shape (1, 0)"),
        ({"fixed_tokens": (99,) * SIDE**2}, "does not fit this model: fixed_tokens ha"),
        ({"caption": " "}, "does not fit this model: its caption is empty"),
    ],
)
def test_a_file_that_no_studio_generated_is_rejected_before_anything_is_generated(
    package, monkeypatch, changes, message
):
    data = file_with(package, **changes)
    monkeypatch.setattr(Package, "generate_batch", lambda *_: pytest.fail("a batch was generated"))
    with pytest.raises(FieldError) as caught:
        handlers.reproduce(package, data)
    assert caught.value.field == "image" and message in str(caught.value)


def test_a_file_of_many_candidates_in_small_batches_is_reproduced(package):
    assert handlers.reproduce(package, file_with(package, settings={"candidates": 10**9}))["same"]


@given(st.lists(st.lists(st.integers(-2, 2**31 - 1), max_size=6), max_size=6))
def test_any_grid_is_tokens_or_is_rejected(package, grid):
    try:
        assert handlers.tokens_of(package, grid, "tokens").shape == (SIDE, SIDE)
    except FieldError as error:
        assert str(error).startswith("tokens ")


@pytest.mark.parametrize("kind", ["transformer", "next_scale"])
def test_of_a_model_with_several_grids_images_are_generated_and_found_but_not_edited(tmp_path, kind):
    package = several_grids(tmp_path, kind)
    tokenizer, description = package.image_tokenizer, handlers.describe(package)
    assert (description["side"], description["can_edit"]) == (4 if kind == "next_scale" else None, False)

    _, candidate, _ = generate(package, candidates=1)

    tokens = candidate["tokens"]
    assert handlers.reproduce(package, png(candidate))["same"]
    assert handlers.encode_image(package, png(candidate))["psnr"] > 0
    assert handlers.flat_tokens_of(package, tokens, "tokens").tolist() == sum(tokens, [])
    count = tokenizer.num_tokens
    with pytest.raises(FieldError, match=f"tokens has {count - 1} tokens; images of this model have {count}"):
        handlers.flat_tokens_of(package, [tokens[0][1:]], "tokens")
    for request in (
        lambda: handlers.edit_tokens(package, tokens, None, True, []),
        lambda: handlers.likelihood(package, PROMPT, tokens),
    ):
        with pytest.raises(
            FieldError, match="2, 4 cells a side, and a coarse token covers many cells, so single"
        ):
            request()


def several_grids(folder, kind: str) -> Package:
    tokenizer = two_grids() if kind == "transformer" else tiny("image_tokenizers", "multi_scale")
    return load_package(fitting_package(folder, tokenizer, kind))


def test_of_several_grids_cells_of_the_finest_are_kept_if_the_generator_can(tmp_path):
    package = several_grids(tmp_path / "next", "next_scale")
    _, original, _ = generate(package, candidates=1)
    (tokens,) = original["tokens"]
    upper_half = [[*tokens[:-8], *[-1] * 8]]  # of the 4 x 4 cells of the finest grid

    _, *inpainted, _ = generate(package, seed=1, fixed_tokens=upper_half)

    assert {str(event["tokens"]) for event in inpainted} != {str(original["tokens"])}
    expected = package.generate(PROMPT, 4, 1, torch.tensor(upper_half[0]), batch_size=8)
    assert {candidate.candidate: candidate.tokens.tolist() for candidate in expected} == {
        event["candidate"]: event["tokens"][0] for event in inpainted
    }
    assert all(handlers.reproduce(package, png(event))["same"] for event in inpainted)
    assert schema.GenerateRequest(prompt=PROMPT, fixed_tokens=[[0] * 407])  # as in the preset multi_scale
    with pytest.raises(FieldError, match=r"^fixed_tokens has -1 among the first \d+ tokens"):
        generate(package, fixed_tokens=[[-1, *tokens[1:]]])
    other = several_grids(tmp_path / "token", "transformer")
    with pytest.raises(FieldError, match="2, 4 cells a side; here cells can be kept of one grid"):
        generate(other, fixed_tokens=upper_half)
