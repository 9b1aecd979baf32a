"""python -m thousandwords tokens image.png --caption "a small red star on sand" --set 3,4=17 --out tokens

Show and edit the tokens of an image: a grid of numbers, the image that they decode to, and with a caption a
heat map of the tokens that the model did not expect. Edits are made in the order stitch, flip, set. Instead
of an image, the tokens.json of an earlier run continues from there.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thousandwords.api import read_image
from thousandwords.cli.inputs import add_package_options, positive, read_chosen_package
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_bytes, write_json
from thousandwords.data.contact_sheet import make_contact_sheet
from thousandwords.data.images import encode_png, fit_square, to_uint8
from thousandwords.inference import token_editing
from thousandwords.inference.batched import decode_in_batches, encode_in_batches
from thousandwords.inference.config import check_prompt
from thousandwords.inference.inpainting import grid_side
from thousandwords.inference.likelihood import likelihood_of_tokens
from thousandwords.inference.package import Package

NUM_LISTED = 5  # most surprising cells that are printed


@dataclass(frozen=True)
class Source:
    """What is edited: an image, or a grid of tokens with the fingerprint of their image tokenizer."""

    path: Path
    image: np.ndarray | None = None
    grid: Tensor | None = None  # (side, side)
    fingerprint: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", type=Path, help="an image, or the tokens.json of an earlier run")
    add("--stitch", type=Path, metavar="OTHER", help="take the right part of this image or tokens.json")
    add("--columns", type=positive, metavar="N", help="of the first image, in a stitch (default: half)")
    add("--flip", action="store_true", help="mirror the grid, left to right")
    add(
        "--set",
        action="append",
        default=[],
        metavar="ROW,COLUMN=TOKEN",
        help="another token in one cell; may be repeated",
    )
    add("--caption", help="what the image shows; adds the heat map of tokens that were not expected")
    add("--out", type=Path, default=Path("tokens"), help="output folder (default: tokens)")
    add_package_options(parser)


def run(options: argparse.Namespace) -> None:
    """Read, edit and show the tokens; a bad request is rejected before a model is loaded."""
    edits = [parse_edit(text) for text in options.set]
    caption = None if options.caption is None else check_prompt(options.caption, "the caption")
    if options.columns is not None and options.stitch is None:
        raise UserError(
            "--columns says where two images meet, but there is only one. Name the other with --stitch"
        )
    first = read_source(options.image)
    second = None if options.stitch is None else read_source(options.stitch)
    package = read_chosen_package(options, "tokens")
    before = after = grid_of(package, first)
    try:
        if second is not None:
            after = token_editing.stitch(after, grid_of(package, second), options.columns)
        if options.flip:
            after = token_editing.flip(after)
        for row, column, token in edits:
            after = token_editing.set_token(after, row, column, token, package.image_tokenizer.vocab_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    write_results(package, first, before, after, options.out)
    if caption is not None:
        write_surprisal(package, caption, after, options.out)
    print(f"tokens and images -> {options.out}")


def write_results(package: Package, source: Source, before: Tensor, after: Tensor, out: Path) -> None:
    """Write the tokens, and the images that they decode to before and after the edits."""
    tokenizer = package.image_tokenizer
    pair = to_uint8(decode_in_batches(tokenizer, torch.stack([before, after]).flatten(1)))
    original = pair[0] if source.image is None else fit_square(source.image, tokenizer.image_size)
    write_json(out / "tokens.json", {"tokens": after.tolist(), "image_tokenizer": tokenizer.fingerprint})
    labels, zoom = ["original", "from its tokens", "after the edits"], max(1, 256 // original.shape[0])
    images = {
        "original": original,
        "decoded": pair[1],
        "tokens": token_editing.label_tokens(pair[1], after),
        "side_by_side": make_contact_sheet(np.stack([original, *pair]), 3, labels=labels, zoom=zoom),
    }
    for name, image in images.items():
        write_bytes(out / f"{name}.png", encode_png(image))


def write_surprisal(package: Package, caption: str, grid: Tensor, out: Path) -> None:
    """Write the heat map, and print how likely the image is and which tokens were expected least."""
    (result,) = likelihood_of_tokens(package, caption, grid.reshape(1, -1))
    nats = token_editing.as_grid(result.image)
    image = to_uint8(decode_in_batches(package.image_tokenizer, grid.reshape(1, -1)))[0]
    write_bytes(out / "heat.png", encode_png(token_editing.heat_map(image, nats)))
    guess = np.log2(package.image_tokenizer.vocab_size)
    caption_part = "" if result.caption_bits is None else f"; the caption {result.caption_bits:.1f} bits"
    print(
        f"{result.image_bits:.1f} bits, {result.bits_per_token:.2f} per token (a uniform guess: {guess:.2f})"
        f"{caption_part}. Expected least:"
    )
    for row, column, bits in token_editing.most_surprising_cells(nats, NUM_LISTED):
        print(f"  {bits:5.1f} bits  row {row}, column {column}: token {int(grid[row, column])}")


def parse_edit(text: str) -> tuple[int, int, int]:
    """ "3,4=17" -> (3, 4, 17); raises UserError."""
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*=\s*(\d+)\s*", text)
    if not match:
        raise UserError(f"--set {text} is not understood. Give ROW,COLUMN=TOKEN, for example --set 3,4=17")
    row, column, token = match.groups()
    return int(row), int(column), int(token)


def read_source(path: Path) -> Source:
    """An image, or the tokens that an earlier run wrote; raises UserError."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return Source(path, image=read_image(path))
    try:
        metadata = json.loads(path.read_bytes())
        grid = torch.tensor(metadata["tokens"])
        if grid.ndim != 2 or grid.shape[0] != grid.shape[1] or grid.dtype != torch.int64:
            raise ValueError(
                f"its tokens are {grid.dtype} of shape {tuple(grid.shape)}, not a square grid of whole numbers"
            )
        return Source(path, grid=grid, fingerprint=str(metadata["image_tokenizer"]))
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not a tokens.json that `tokens` wrote ({reason}). Give an image, or write the file again"
        ) from error


def grid_of(package: Package, source: Source) -> Tensor:
    """The tokens of a source, (side, side); raises UserError where they are of another vocabulary."""
    tokenizer, side = package.image_tokenizer, grid_side(package.image_tokenizer.scales)
    if source.grid is None:
        return token_editing.as_grid(encode_in_batches(tokenizer, [source.image])[0])
    if source.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{source.path} holds tokens of the image tokenizer {source.fingerprint[:12]}, but this package has "
            f"{tokenizer.fingerprint[:12]}. Give the package that wrote it, or the image itself"
        )
    try:
        tokenizer.check_tokens(source.grid.reshape(1, -1))
    except ValueError as error:
        raise UserError(
            f"{source.path} was edited by hand and is not valid: {error}. Write the file again"
        ) from error
    return source.grid.reshape(side, side)
