"""A sheet on which people vote, blind, between two runs: the paper's human study (arXiv 2102.12092, section 3), ready to send.

One html file: prompts and sides shuffled, two questions a pair, votes saved as CSV by the page itself. Which side is which run
stands in a key that the experimenter keeps; the sheet holds no name, no score and no seed, and pictures are encoded anew at one
size. So two sheets of the same runs, given in the other order, differ by the sides of their pictures alone. Layout:
`sheet.html.j2`, with `sheet.js.j2`. Left out: pairs whose two pictures are the same, which nobody can tell apart.
"""
from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from thousandwords.errors import UserError
from thousandwords.files import fingerprint, unit_hash
from thousandwords.report import PIXEL_ART_WIDTH
from thousandwords.runs import Common, Run, common_prompts
from thousandwords.votes import COLUMNS, QUESTIONS


@dataclass(frozen=True)
class Pair:
    """One prompt of a sheet: two pictures as they stand side by side, and which run ("a" or "b") is on the left."""

    caption: str
    left: bytes
    right: bytes
    left_is: str


def make_sheet(a: Run, b: Run, prompts: int, seed: int) -> tuple[str, dict]:
    """(the sheet, its key): up to `prompts` of the captions that both drew. `seed` decides which, in which order, on which side.

    Raises UserError where the runs have no prompt in common, or the same best picture of each.
    """
    pairs, alike = choose(a, b, common_prompts(a, b), prompts, seed)
    if not pairs:
        raise UserError(f"{a.name} and {b.name} have the same best picture of each prompt: there is nothing to vote on")
    shown = [{"caption": pair.caption, "left": uri(pair.left), "right": uri(pair.right)} for pair in pairs]
    known = fingerprint([QUESTIONS, shown])[:16]
    key = {
        "sheet": known,
        "a": a.name,
        "b": b.name,
        "seed": seed,
        "left_out_because_alike": alike,
        "prompts": [{"number": number, "caption": pair.caption, "left": pair.left_is} for number, pair in enumerate(pairs, 1)],
    }
    return render_sheet(known, shown, side_of(a, b) <= PIXEL_ART_WIDTH), key


def choose(a: Run, b: Run, both: Sequence[Common], count: int, seed: int) -> tuple[list[Pair], int]:
    """The pairs of a sheet, in its order, and how many on the way to them were left out because both pictures are the same."""
    side, pairs, alike = side_of(a, b), [], 0
    for one in sorted(both, key=lambda one: unit_hash(f"order {one.caption}", seed)):
        ours, theirs = (encoded(run.best(row)[0][0], side) for run, row in ((a, one.a), (b, one.b)))
        if ours == theirs:
            alike += 1
        elif unit_hash(f"side {one.caption}", seed) < 0.5:
            pairs.append(Pair(one.caption, ours, theirs, "a"))
        else:
            pairs.append(Pair(one.caption, theirs, ours, "b"))
        if len(pairs) == count:
            break
    return pairs, alike


def side_of(a: Run, b: Run) -> int:
    """How many pixels wide the pictures of a sheet are: as those of the run with the larger ones."""
    return max(run.drawn.pictures(0).shape[1] for run in (a, b))


def encoded(pixels: np.ndarray, side: int) -> bytes:
    """uint8 (H, W, 3) -> WebP without loss and without a word about where it is from, `side` pixels wide and high."""
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def uri(picture: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")


def render_sheet(known: str, pairs: Sequence[dict[str, str]], pixel_art: bool) -> str:
    """The page. Its policy lets it run the one script that it holds, known by its sha256, and load nothing."""
    layout = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    script = layout.get_template("sheet.js.j2").render()
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    sheet = {"id": known, "pairs": pairs, "questions": list(QUESTIONS.items()), "columns": COLUMNS}
    return layout.get_template("sheet.html.j2").render(
        sheet=sheet, questions=QUESTIONS, script=script, allowed=allowed, pixel_art=pixel_art,
    )  # fmt: skip
