"""A sheet for a blind vote between two runs, like the paper's human evaluation (arXiv 2102.12092, section 3).

One html file: prompts and sides in random order, two questions per pair, votes saved as CSV by the page
itself. Which side shows which run is in a separate key. The sheet contains no name, no score and no seed, and
all images are encoded again at one size, so that sheets of the same runs in the other order differ only in
the sides of their images. Layout: `human_eval.html.j2`, with `human_eval.js.j2`. Left out: pairs of two
identical images.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from thousandwords.core.errors import UserError
from thousandwords.core.files import fingerprint, unit_hash
from thousandwords.reporting.finished_run import CommonPrompt, FinishedRun, common_prompts
from thousandwords.reporting.html_report import PIXEL_ART_WIDTH, page_environment
from thousandwords.reporting.human_eval_votes import COLUMNS, QUESTIONS


@dataclass(frozen=True)
class Pair:
    """One prompt of a sheet: two images side by side, and which run ("a" or "b") is on the left."""

    caption: str
    left: bytes
    right: bytes
    left_run: str


def make_sheet(a: FinishedRun, b: FinishedRun, num_prompts: int, seed: int) -> tuple[str, dict]:
    """(the sheet, its key), with up to `num_prompts` captions that are in both runs; `seed` decides which, in
    which order, on which side.

    Raises UserError where the runs have no prompt in common, or the same best image for each.
    """
    pairs, num_identical = choose_pairs(a, b, common_prompts(a, b), num_prompts, seed)
    if not pairs:
        raise UserError(
            f"{a.name} and {b.name} have the same best image for each prompt: there is nothing to vote on"
        )
    page_pairs = [
        {"caption": pair.caption, "left": data_uri(pair.left), "right": data_uri(pair.right)}
        for pair in pairs
    ]
    sheet_id = fingerprint([QUESTIONS, page_pairs])[:16]
    key = {
        "sheet": sheet_id,
        "a": a.name,
        "b": b.name,
        "seed": seed,
        "left_out_because_alike": num_identical,
        "prompts": [
            {"number": number, "caption": pair.caption, "left": pair.left_run}
            for number, pair in enumerate(pairs, 1)
        ],
    }
    return render_sheet(sheet_id, page_pairs, image_size(a, b) <= PIXEL_ART_WIDTH), key


def choose_pairs(
    a: FinishedRun, b: FinishedRun, prompts: Sequence[CommonPrompt], count: int, seed: int
) -> tuple[list[Pair], int]:
    """The pairs of a sheet, in its order, and how many were skipped because both images are identical."""
    size, pairs, num_identical = image_size(a, b), [], 0
    for prompt in sorted(prompts, key=lambda prompt: unit_hash(f"order {prompt.caption}", seed)):
        image_a = encode_image(a.best(prompt.a)[0][0], size)
        image_b = encode_image(b.best(prompt.b)[0][0], size)
        if image_a == image_b:
            num_identical += 1
        elif unit_hash(f"side {prompt.caption}", seed) < 0.5:
            pairs.append(Pair(prompt.caption, image_a, image_b, "a"))
        else:
            pairs.append(Pair(prompt.caption, image_b, image_a, "b"))
        if len(pairs) == count:
            break
    return pairs, num_identical


def image_size(a: FinishedRun, b: FinishedRun) -> int:
    """The width in pixels of all images of a sheet: that of the run with the larger images."""
    return max(run.samples.images(0).shape[1] for run in (a, b))


def encode_image(pixels: np.ndarray, size: int) -> bytes:
    """uint8 (H, W, 3) -> lossless WebP without metadata, `size` pixels wide and high."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def data_uri(webp: bytes) -> str:
    """WebP as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")


def render_sheet(sheet_id: str, pairs: Sequence[dict[str, str]], pixel_art: bool) -> str:
    """The page. Its content policy allows only its one script, by sha256, and loads nothing."""
    environment = page_environment()
    script = environment.get_template("human_eval.js.j2").render()
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    sheet = {"id": sheet_id, "pairs": pairs, "questions": list(QUESTIONS.items()), "columns": COLUMNS}
    return environment.get_template("human_eval.html.j2").render(
        sheet=sheet, questions=QUESTIONS, script=script, allowed=allowed, pixel_art=pixel_art
    )
