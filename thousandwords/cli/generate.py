"""python -m thousandwords generate "a small red star above a large blue square" --candidates 16 --seed 7

Generate ranked candidates with a trained package: a best-first grid per prompt, and each image as a file.
With --inpaint the top of an image (or what a mask keeps of it) stays, and the rest is sampled for the prompt.
Each image records how it was generated, so the same command goes on where an earlier one was stopped.
"""

import argparse
import dataclasses
import hashlib
import sys
import time
from pathlib import Path

import numpy as np

from thousandwords.api import check_seed, kept_cells, read_inpainted
from thousandwords.cli.inputs import add_package_options, positive, read_chosen_package, read_prompts
from thousandwords.core.errors import UserError
from thousandwords.core.filenames import distinct_slugs
from thousandwords.core.files import write_bytes
from thousandwords.data.contact_sheet import make_contact_sheet
from thousandwords.data.images import encode_png, fit_square
from thousandwords.inference.config import SamplingConfig, check_guidance, replace_settings
from thousandwords.inference.inpainting import fixed_tokens_of, gray_out
from thousandwords.inference.package import Candidate
from thousandwords.inference.provenance import Provenance, encode_png_with_provenance, read_provenance


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", nargs="*", help="what to generate; several prompts are possible")
    add("--prompts", type=Path, help="a text file with one prompt per line")
    add("--out", type=Path, default=Path("generated"), help="output folder (default: generated)")
    add("--candidates", "-n", type=positive, default=32, help="per prompt (default: 32)")
    add("--keep", type=positive, metavar="K", help="the number of best images to write (default: all)")
    add("--seed", type=int, default=0, help="another seed, other images (default: 0)")
    add("--guidance", type=float, help="above 1: closer to the caption (default: as trained)")
    add("--temperature", type=float, help="below 1: safer, above: bolder (default: as trained)")
    add("--top-k", type=positive, help="sample from the k likeliest tokens (default: as trained)")
    add("--top-p", type=float, help="sample from the tokens that hold this probability (default: as trained)")
    add("--inpaint", type=Path, metavar="IMAGE", help="an image whose top stays; the rest is sampled")
    add("--keep-rows", type=positive, metavar="R", help="rows of tokens that stay (default: half of them)")
    add("--keep-mask", type=Path, metavar="MASK", help="an image that is white where the other one stays")
    add_package_options(parser)


def run(options: argparse.Namespace) -> None:
    """Generate the images; a bad request is rejected before a model is loaded.

    One grid per prompt, best first, and the single images in a folder beside it.
    """
    prompts = read_prompts(options.prompt, options.prompts)
    check_seed(options.seed)
    names = ("temperature", "top_k", "top_p", "guidance")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    replace_settings(SamplingConfig(), **changes)
    flags = ("--inpaint", "--keep-rows", "--keep-mask")
    image, mask = read_inpainted(options.inpaint, options.keep_rows, options.keep_mask, flags)
    package = read_chosen_package(options, "generate")
    fixed_tokens = kept_part = None
    if image is not None:
        is_kept = kept_cells(package, mask, options.keep_rows)
        image = fit_square(image, package.image_tokenizer.image_size)
        fixed_tokens = fixed_tokens_of(package.image_tokenizer, image, is_kept)
        kept_part = gray_out(image, is_kept)
    settings = replace_settings(package.settings, **changes, candidates=options.candidates)
    check_guidance(settings.guidance, package.generator.config)
    fixed_numbers = None if fixed_tokens is None else tuple(fixed_tokens.tolist())
    for number, (prompt, name) in enumerate(zip(prompts, distinct_slugs(prompts), strict=True)):
        position = f"[{number + 1}/{len(prompts)}] " if len(prompts) > 1 else ""
        for note in package.text_tokenizer.describe_prompt(prompt):
            print(f'generate: {position}"{prompt}": {note}', file=sys.stderr, flush=True)
        end = f"{'' if image is None else '-inpainted'}-seed{options.seed}.png"
        path = options.out / f"{name}{end}"
        if is_of_other_prompt(path, prompt):  # "a star!" after "a star"
            path = options.out / f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}{end}"
        provenance = Provenance(prompt, options.seed, 0, package.fingerprint, settings, fixed_numbers)
        if is_finished(path, provenance, min(options.keep or options.candidates, options.candidates)):
            print(f"{position}{prompt}: finished before, kept -> {path}", flush=True)
            continue
        if remove_images(path):
            reason = "with other models or settings, or not to the end"
            print(f"{position}{prompt}: {path} was generated {reason}; it is generated anew", flush=True)
        start = time.monotonic()
        candidates = package.generate(
            prompt, options.candidates, options.seed, fixed_tokens, options.keep, **changes
        )
        for rank, candidate in enumerate(candidates):
            own = dataclasses.replace(provenance, candidate=candidate.candidate)
            data = encode_png_with_provenance(candidate.image, own)
            write_bytes(path.with_suffix("") / f"{rank:03d}.png", data)
        # the grid comes last: where there is one, its images are complete
        write_bytes(path, encode_png(candidate_sheet(candidates, kept_part)))
        kept = f"{len(candidates)} of " if len(candidates) < options.candidates else ""
        took = f"{kept}{options.candidates} candidates in {time.monotonic() - start:.1f} s"
        print(f"{position}{prompt}: {took} -> {path}", flush=True)


def is_finished(grid: Path, provenance: Provenance, keep: int) -> bool:
    """Whether the grid and its `keep` images are there, no more, generated just so (`provenance.candidate` does not matter)."""
    images = [grid.with_suffix("") / f"{rank:03d}.png" for rank in range(keep)]
    if (grid.with_suffix("") / f"{keep:03d}.png").exists():
        return False
    try:
        found = [read_provenance(image.read_bytes()) for image in images if grid.is_file()]
    except (OSError, UserError):
        return False
    candidates = {each.candidate for each in found if each}
    expected = {dataclasses.replace(provenance, candidate=number) for number in candidates}
    return len(candidates) == keep and set(found) == expected


def is_of_other_prompt(grid: Path, prompt: str) -> bool:
    """Whether the images of this grid were generated for another prompt, which has the same name of a file."""
    try:
        return read_provenance((grid.with_suffix("") / "000.png").read_bytes()).caption != prompt
    except (OSError, UserError):
        return False


def remove_images(grid: Path) -> bool:
    """Remove a grid, then its images; whether there were any. A file that is no image of ours stays."""
    files = [grid, *grid.with_suffix("").glob("[0-9][0-9][0-9]*.png")]
    files = [file for file in files if file.is_file()]
    for file in files:
        file.unlink()
    return bool(files)


def candidate_sheet(candidates: list[Candidate], kept_part: np.ndarray | None = None) -> np.ndarray:
    """A grid of candidates in their order, each with its score below; `kept_part`, if any, comes first."""
    images = [candidate.image for candidate in candidates]
    labels = [f"{candidate.score:.3f}" for candidate in candidates]
    if kept_part is not None:
        images, labels = [kept_part, *images], ["kept", *labels]
    zoom = max(1, 128 // images[0].shape[0])
    return make_contact_sheet(np.stack(images), columns=min(8, len(images)), labels=labels, zoom=zoom)
