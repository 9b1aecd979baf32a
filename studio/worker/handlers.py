"""What the models do for the studio, one function a request: models and what was asked in, events for the page out.

Events are dicts that become JSON, pictures in them PNG in base64, grids lists of rows. No request is trusted, but its types have
been looked at (`studio.schema`); what only the models can tell is refused here, by a UserError.
"""
from __future__ import annotations

import base64
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thousandwords import images, metrics, workbench
from thousandwords.completion import side_of
from thousandwords.drawing import (
    Settings,
    changed,
    check_guidance,
    check_prompt,
    count_batches,
    decode_in_parts,
    encode_in_parts,
)
from thousandwords.errors import UserError
from thousandwords.likelihood import likelihood_of_words
from thousandwords.package import Candidate, Package, best_first
from thousandwords.provenance import Provenance, provenance_of, with_provenance

Event = dict[str, Any]
Grid = list[list[int]]
TOGETHER = {"cpu": 8, "cuda": 32}  # candidates drawn at a time: few enough that the first are seen at once and a stop is heard
MOST_TOGETHER = 64  # that a file may say were drawn at a time: memory is taken for all of them
WORST = 5  # cells that are named


class Asked(UserError):
    """Something is wrong with one field of a request."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple:  # it crosses from one process to another
        return Asked, (self.field, str(self))


# --- what there is -----------------------------------------------------------------------------------------------------


def describe(package: Package) -> Event:
    """What a page has to know of a package to ask it for pictures."""
    names = ("temperature", "top_k", "top_p", "guidance")
    return {
        "fingerprint": package.fingerprint,
        "image_size": package.image_tokenizer.image_size,
        "side": _side(package),
        "vocab_size": package.image_tokenizer.vocab_size,
        "text_length": package.text_tokenizer.text_length,
        "settings": {name: getattr(package.settings, name) for name in names},
        "can_guide": bool(getattr(package.generator.config, "caption_dropout", 0)),
    }


def _side(package: Package) -> int | None:
    """Rows of the one grid of words; None where they form several, and cells cannot be spoken of."""
    try:
        return side_of(package.image_tokenizer.scales)
    except UserError:
        return None


# --- drawing -----------------------------------------------------------------------------------------------------------


def draw(package: Package, prompt: str, candidates: int, seed: int, given: Grid | None, changes: dict) -> Iterator[Event]:
    """Candidates as they are drawn, then their order. Raises Asked before the first of them."""
    prompt = prompt_of(prompt)
    settings = settings_of(package, candidates, changes)
    words = None if given is None else given_of(package, given)
    asked = Provenance(prompt, seed, 0, package.fingerprint, settings, None if words is None else tuple(words.tolist()))
    yield {"event": "started", "fingerprint": package.fingerprint, "prompt": prompt, "candidates": candidates, "seed": seed,
           **read_of(package, prompt)}  # fmt: skip
    drawn: list[Candidate] = []
    for number in range(count_batches(1, settings)):
        for one in package.draw_part(prompt, settings, seed, number, words):
            drawn.append(one)
            facts = dataclasses.replace(asked, candidate=one.candidate)
            yield {"event": "candidate", "candidate": one.candidate, "png": text_of(with_provenance(one.picture, facts)),
                   "words": grid_of(one.tokens), "score": round(one.score, 6)}  # fmt: skip
    yield {"event": "ranked", "order": [one.candidate for one in best_first(drawn)],
           "settings": dataclasses.asdict(settings)}  # fmt: skip


def redraw(package: Package, facts: Provenance, data: bytes) -> Event:
    """The picture that the facts tell of, drawn again, beside the file that told them. Raises Asked before anything is drawn."""
    check_facts(package, facts)
    shown = pixels_of(data)
    number = facts.candidate // facts.settings.batch_size
    given = None if facts.given is None else torch.tensor(facts.given)
    part = package.draw_part(facts.caption, facts.settings, facts.seed, number, given)
    one = next(one for one in part if one.candidate == facts.candidate)
    again = with_provenance(one.picture, facts)
    return {
        "same": again == data,
        "same_pixels": np.array_equal(shown, one.picture),
        "png": text_of(again),
        "words": grid_of(one.tokens),
        "score": round(one.score, 6),
        "provenance": dataclasses.asdict(facts),
    }


def read_of(package: Package, prompt: str) -> Event:
    """{"read": the part of the caption that the model reads, "truncated": whether there is more}."""
    words = package.text_tokenizer
    return {"read": words.decode(words.encode([prompt])[0]), "truncated": len(words.words(prompt)) > words.text_length}


# --- words -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def picture(package: Package, data: bytes) -> Event:
    """A picture of anybody's as the models see it: its square, its words, and what they give back. Raises Asked."""
    square = images.fit_square(pixels_of(data), package.image_tokenizer.image_size)
    tokens = encode_in_parts(package.image_tokenizer, [square])
    rebuilt = _decoded(package, tokens[0])
    facts = provenance_of(data)
    return {
        "words": grid_of(tokens[0]),
        "png": text_of(images.encode_png(square)),
        "rebuilt": text_of(images.encode_png(rebuilt)),
        "psnr": round(metrics.mean_psnr(images.to_float(square[None]), images.to_float(rebuilt[None])), 2),
        "provenance": None if facts is None else dataclasses.asdict(facts),
    }


def words(package: Package, grid: Grid, stitch: dict | None, flip: bool, set: list[dict]) -> Event:
    """A grid after changes, stitched, flipped, then with single words set, and its picture. Raises Asked."""
    found = words_of(package, grid, "words")
    if stitch is not None:
        other = words_of(package, stitch["words"], "stitch.words")
        with _about("stitch"):
            found = workbench.stitch(found, other, stitch["columns"])
    if flip:
        found = workbench.flip(found)
    with _about("set"):
        for one in set:
            found = workbench.set_word(found, one["row"], one["column"], one["word"], package.image_tokenizer.vocab_size)
    return {"words": found.tolist(), "png": text_of(images.encode_png(_decoded(package, found.flatten())))}


def likelihood(package: Package, prompt: str, grid: Grid) -> Event:
    """How many bits each word of a picture costs under a caption, with a heat map."""
    prompt, found = prompt_of(prompt), words_of(package, grid, "words")
    (known,) = likelihood_of_words(package, prompt, found.reshape(1, -1))
    nats = workbench.as_grid(known.image)
    heat = workbench.heat_map(_decoded(package, found.flatten()), nats)
    return {
        "bits": workbench.surprise(nats).reshape(found.shape).round(4).tolist(),
        "picture_bits": round(known.picture_bits, 4),
        "caption_bits": round(known.caption_bits, 4),
        "bits_per_word": round(known.bits_per_word, 4),
        "blind_bits_per_word": round(float(np.log2(package.image_tokenizer.vocab_size)), 4),
        "worst": [{"row": row, "column": column, "word": int(found[row, column]), "bits": round(bits, 4)}
                  for row, column, bits in workbench.most_surprising(nats, WORST)],
        "png": text_of(images.encode_png(heat)),
    }  # fmt: skip


# --- what was asked, looked at -----------------------------------------------------------------------------------------


def prompt_of(prompt: str) -> str:
    """The prompt in the form models read. Raises Asked."""
    try:
        return check_prompt(prompt, "the caption")
    except UserError as error:
        raise Asked("prompt", str(error)) from error


def pixels_of(data: bytes) -> np.ndarray:
    """A picture's file -> uint8 (H, W, 3). Raises Asked."""
    try:
        return images.decode_image(data)
    except images.Refused as problem:
        raise Asked("picture", f"this is no picture that can be used: {problem.detail}. Save it anew, as PNG say") from problem


def settings_of(package: Package, candidates: int, changes: dict) -> Settings:
    """The package's settings with those that were asked for, as the studio draws. Raises Asked."""
    device = next(package.generator.parameters()).device.type
    for name, value in changes.items():
        try:
            changed(package.settings, **{name: value})
        except ValueError as error:
            raise Asked(name, str(error).removeprefix("sampling.")) from error
    settings = changed(package.settings, **changes, candidates=candidates, batch_size=TOGETHER.get(device, 8))
    try:
        check_guidance(settings.guidance, package.generator.config)
    except UserError as error:
        raise Asked("guidance", str(error).removeprefix("sampling.")) from error
    return settings


@contextlib.contextmanager
def _about(field: str) -> Iterator[None]:
    """What the library has against a field becomes Asked."""
    try:
        yield
    except ValueError as error:
        raise Asked(field, str(error)) from error


def given_of(package: Package, grid: Grid) -> Tensor:
    """Words that are given, -1 where one is to be drawn: (L,). Raises Asked, also where nothing is left to draw."""
    found = words_of(package, grid, "given", first=-1).flatten()
    if (found >= 0).all() or (found < 0).all():
        raise Asked("given", "either all words are given or none is. Keep some cells, and leave some to be drawn")
    return found


def words_of(package: Package, grid: Grid, field: str, first: int = 0) -> Tensor:
    """A grid of words, (side, side) int64. Raises Asked."""
    side, vocab_size = side_of(package.image_tokenizer.scales), package.image_tokenizer.vocab_size
    if len(grid) != side or any(len(row) != side for row in grid):
        raise Asked(field, f"{field} should be {side} rows of {side} words each, as this model's pictures have")
    found = torch.tensor(grid)
    if found.min() < first or found.max() >= vocab_size:
        raise Asked(field, f"{field} holds words from {int(found.min())} to {int(found.max())}; "
                           f"this vocabulary runs from {first} to {vocab_size - 1}")
    return found


def check_facts(package: Package, facts: Provenance) -> None:
    """Raises Asked where this package could not have drawn what the facts tell of, or no studio would have."""
    together = min(facts.settings.batch_size, facts.settings.candidates)
    if together > MOST_TOGETHER:
        raise Asked("picture", f"this picture says that {together} were drawn at a time; {MOST_TOGETHER} are the most here. "
                               "It was changed on the way; take another copy of it")
    try:
        check_prompt(facts.caption, "its caption")
        check_guidance(facts.settings.guidance, package.generator.config)
        if facts.given is not None:
            package.generator.check_given(torch.tensor(facts.given, dtype=torch.int64)[None], 1)
    except (UserError, ValueError) as error:
        raise Asked("picture", f"what this picture says of how it was drawn does not fit this model: {error}") from error


def _decoded(package: Package, tokens: Tensor) -> np.ndarray:
    with torch.no_grad():
        return images.to_uint8(decode_in_parts(package.image_tokenizer, tokens[None]))[0]


def grid_of(tokens: Tensor) -> Grid:
    """(L,) -> rows; one row where the words form no square."""
    try:
        return workbench.as_grid(tokens).tolist()
    except ValueError:
        return [tokens.tolist()]


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()

