"""python -m thousandwords words picture.png --caption "a small red star on sand" --set 3,4=17 --out words

The words of a picture, to look at and to change: a grid of numbers, the picture that they give, and with a caption a heat
map of what the model did not expect. Changes are made in the order: stitch, flip, set. Instead of a picture, the words.json
of an earlier run goes on where that one ended.
"""
from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thousandwords import images, workbench
from thousandwords.commands._inputs import positive, read_picture
from thousandwords.completion import side_of
from thousandwords.drawing import check_prompt, decode_in_parts, encode_in_parts
from thousandwords.errors import UserError
from thousandwords.files import write_bytes, write_json
from thousandwords.likelihood import Likelihood, likelihood_of_words
from thousandwords.package import Package, load_package

WORST = 5  # cells that are named


@dataclass(frozen=True)
class Start:
    """Where one begins: a picture, or words with the fingerprint of the tokenizer that they are of."""

    path: Path
    picture: np.ndarray | None = None
    grid: Tensor | None = None  # (side, side)
    fingerprint: str = ""


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `words`."""
    words = subparsers.add_parser("words", help="the words of a picture, to look at and to change", description=__doc__)
    words.add_argument("picture", type=Path, help="a picture, or the words.json of an earlier run")
    words.add_argument("--stitch", type=Path, metavar="OTHER", help="take the right part of this picture or words.json")
    words.add_argument("--columns", type=positive, metavar="N", help="of the first picture, in a stitch (default: half)")
    words.add_argument("--flip", action="store_true", help="the grid, left for right")
    words.add_argument("--set", action="append", default=[], metavar="ROW,COLUMN=WORD", help="another word in one cell; may "
                       "be given again")  # fmt: skip
    words.add_argument("--caption", help="what the picture shows; adds the heat map of what was not expected")
    words.add_argument("--package", type=Path, default=Path("models/package"), help="(default: models/package)")
    words.add_argument("--out", type=Path, default=Path("words"), help="where the files go (default: words)")
    words.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return words


def run(options: argparse.Namespace) -> None:
    """Reads, changes and shows the words; a bad request is refused before a model is loaded."""
    changes = [parse_change(word) for word in options.set]
    caption = None if options.caption is None else check_prompt(options.caption, "the caption")
    if options.columns is not None and options.stitch is None:
        raise UserError("--columns says where two pictures meet, but there is one only. Name the other with --stitch")
    first = read_start(options.picture)
    second = None if options.stitch is None else read_start(options.stitch)
    package = load_package(options.package, options.device)
    before = grid_of(package, first)
    other = None if second is None else grid_of(package, second)
    after = changed(before, other, options, changes, package.image_tokenizer.vocab_size)
    show(package, first, before, after, options.out)
    if caption is not None:
        show_surprise(package, caption, after, options.out)
    print(f"words, pictures and all -> {options.out}")


def changed(
    grid: Tensor, other: Tensor | None, options: argparse.Namespace, changes: list[tuple[int, int, int]], vocab_size: int
) -> Tensor:
    """The grid as asked for: stitched, then flipped, then with single words set; raises UserError."""
    try:
        if other is not None:
            grid = workbench.stitch(grid, other, options.columns)
        if options.flip:
            grid = workbench.flip(grid)
        for row, column, word in changes:
            grid = workbench.set_word(grid, row, column, word, vocab_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    return grid


def show(package: Package, first: Start, before: Tensor, after: Tensor, out: Path) -> None:
    """Writes the words, and the picture before and after as pictures."""
    pair = images.to_uint8(decode_in_parts(package.image_tokenizer, torch.stack([before, after]).flatten(1)))
    original = pair[0] if first.picture is None else images.fit_square(first.picture, package.image_tokenizer.image_size)
    facts = {"words": after.tolist(), "image_tokenizer": package.image_tokenizer.fingerprint}
    write_json(out / "words.json", facts)
    trio = np.stack([original, *pair])
    zoom = max(1, 256 // original.shape[0])
    pictures = {
        "picture": original,
        "drawn": pair[1],
        "words": workbench.numbered(pair[1], after),
        "side_by_side": images.grid(trio, 3, labels=["picture", "from its words", "after the changes"], zoom=zoom),
    }
    for name, picture in pictures.items():
        write_bytes(out / f"{name}.png", images.encode_png(picture))


def show_surprise(package: Package, caption: str, grid: Tensor, out: Path) -> None:
    """Writes the heat map, and tells how likely the picture is and which words were expected least."""
    (found,) = likelihood_of_words(package, caption, grid.reshape(1, -1))
    nats = workbench.as_grid(found.image)
    picture = images.to_uint8(decode_in_parts(package.image_tokenizer, grid.reshape(1, -1)))[0]
    write_bytes(out / "heat.png", images.encode_png(workbench.heat_map(picture, nats)))
    print(told(found, package.image_tokenizer.vocab_size))
    for row, column, bits in workbench.most_surprising(nats, WORST):
        print(f"  {bits:5.1f} bits  row {row}, column {column}: word {int(grid[row, column])}")


def told(found: Likelihood, vocab_size: int) -> str:
    """One sentence of how likely a picture is."""
    blind = np.log2(vocab_size)
    return (
        f"{found.picture_bits:.1f} bits, {found.bits_per_word:.2f} a word (a blind guess: {blind:.2f}); "
        f"the caption {found.caption_bits:.1f} bits. Expected least:"
    )


def parse_change(text: str) -> tuple[int, int, int]:
    """"3,4=17" -> (3, 4, 17); raises UserError."""
    found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*=\s*(\d+)\s*", text)
    if not found:
        raise UserError(f"--set {text} is not understood. Give ROW,COLUMN=WORD, for example --set 3,4=17")
    row, column, word = found.groups()
    return int(row), int(column), int(word)


def read_start(path: Path) -> Start:
    """A picture, or the words that an earlier run wrote; raises UserError."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return Start(path, picture=read_picture(path))
    try:
        facts = json.loads(path.read_bytes())
        grid = torch.tensor(facts["words"])
        if grid.ndim != 2 or grid.shape[0] != grid.shape[1] or grid.dtype != torch.int64:
            raise ValueError(f"its words are {grid.dtype} of shape {tuple(grid.shape)}, no square grid of whole numbers")
        return Start(path, grid=grid, fingerprint=str(facts["image_tokenizer"]))
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no words.json that `words` wrote ({reason}). Give a picture, or make it anew") from error


def grid_of(package: Package, start: Start) -> Tensor:
    """The words of a start in this package's vocabulary, (side, side); raises UserError where they are another's."""
    tokenizer, side = package.image_tokenizer, side_of(package.image_tokenizer.scales)
    if start.grid is None:
        return workbench.as_grid(encode_in_parts(tokenizer, [start.picture])[0])
    if start.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{start.path} holds words of the image tokenizer {start.fingerprint[:12]}, but this package speaks those of "
            f"{tokenizer.fingerprint[:12]}. Give the package that wrote it, or the picture itself"
        )
    try:
        tokenizer.check_tokens(start.grid.reshape(1, -1))
    except ValueError as error:
        raise UserError(f"{start.path} was changed by hand, and not well: {error}. Make it anew") from error
    return start.grid.reshape(side, side)
