"""A sheet for a blind vote between two runs, like the paper's human evaluation (arXiv 2102.12092, section 3).

One html file: prompts and sides in random order, two questions per pair, votes saved as CSV by the page
itself. Which side shows which run is in a separate key. The sheet contains no name, no score and no seed, and
all images are encoded again at one size, so that it does not reveal the runs. Pairs of two identical images
are left out.
"""

import base64
import hashlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from thousandwords.core.errors import UserError
from thousandwords.core.files import fingerprint, unit_hash
from thousandwords.reporting.finished_run import FinishedRun, common_prompts
from thousandwords.reporting.human_eval_votes import COLUMNS, QUESTIONS
from thousandwords.reporting.page import PIXEL_ART_WIDTH, image_element, page_environment


def make_sheet(a: FinishedRun, b: FinishedRun, num_prompts: int, seed: int) -> tuple[str, dict]:
    """(the sheet, its key), with up to `num_prompts` captions that are in both runs; `seed` decides which, in
    which order, on which side. Raises UserError where the runs have no prompt or no different image in common."""
    size = max(run.samples.images(0).shape[1] for run in (a, b))  # of all images, so that size reveals no run
    pairs, prompts, num_identical = [], [], 0
    for prompt in sorted(common_prompts(a, b), key=lambda prompt: unit_hash(f"order {prompt.caption}", seed)):
        images = {"a": a.best(prompt.a)[0][0], "b": b.best(prompt.b)[0][0]}
        images = {run: encode_image(pixels, size) for run, pixels in images.items()}
        if images["a"] == images["b"]:
            num_identical += 1
            continue
        sides = "ab" if unit_hash(f"side {prompt.caption}", seed) < 0.5 else "ba"
        left, right = (image_element(images[run])["src"] for run in sides)
        pairs.append({"caption": prompt.caption, "left": left, "right": right})
        prompts.append({"number": len(pairs), "caption": prompt.caption, "left": sides[0]})
        if len(pairs) == num_prompts:
            break
    if not pairs:
        raise UserError(
            f"{a.name} and {b.name} have the same best image for each prompt: there is nothing to vote on"
        )
    sheet_id = fingerprint([QUESTIONS, pairs])[:16]
    key = {"sheet": sheet_id, "a": a.name, "b": b.name, "seed": seed}
    key |= {"left_out_because_alike": num_identical, "prompts": prompts}
    return render_sheet(sheet_id, pairs, size <= PIXEL_ART_WIDTH), key


def encode_image(pixels: np.ndarray, size: int) -> bytes:
    """uint8 (H, W, 3) -> lossless WebP without metadata, `size` pixels wide and high."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def render_sheet(sheet_id: str, pairs: Sequence[dict[str, str]], pixel_art: bool) -> str:
    """The page. Its content policy allows only its one script, by sha256, and loads nothing."""
    environment = page_environment()
    script = environment.get_template("human_eval.js.j2").render()
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    sheet = {"id": sheet_id, "pairs": pairs, "questions": list(QUESTIONS.items()), "columns": COLUMNS}
    return environment.get_template("human_eval.html.j2").render(
        sheet=sheet, questions=QUESTIONS, script=script, allowed=allowed, pixel_art=pixel_art
    )
