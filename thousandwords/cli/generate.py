"""python -m thousandwords draw "a small red star above a large blue square" --candidates 16 --seed 7

Draws ranked candidates from a trained package: a best-first grid per prompt, and every picture by itself. With --complete
the top of a given picture (or what a mask keeps of it) stays, and the rest is drawn to the prompt.
"""
from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thousandwords import images
from thousandwords.commands._inputs import positive, read_picture
from thousandwords.commands.prompts import read_prompts
from thousandwords.completion import faded, given_words, kept_by_mask, side_of, top_rows
from thousandwords.drawing import Settings, changed
from thousandwords.errors import UserError
from thousandwords.files import write_bytes
from thousandwords.naming import distinct_slugs
from thousandwords.package import Candidate, Package, load_package


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `draw`."""
    draw = subparsers.add_parser("draw", help="prompts in, ranked pictures out", description=__doc__)
    draw.add_argument("prompt", nargs="*", help="what to draw; several prompts may be given")
    draw.add_argument("--prompts", type=Path, help="a text file with one prompt per line")
    draw.add_argument("--package", type=Path, default=Path("models/package"), help="(default: models/package)")
    draw.add_argument("--out", type=Path, default=Path("drawn"), help="where the pictures go (default: drawn)")
    draw.add_argument("--candidates", "-n", type=positive, default=32, help="drawn per prompt (default: 32)")
    draw.add_argument("--seed", type=int, default=0, help="another seed, other pictures (default: 0)")
    draw.add_argument("--guidance", type=float, help="above 1: closer to the caption (default: as trained)")
    draw.add_argument("--temperature", type=float, help="below 1: safer, above: wilder (default: as trained)")
    draw.add_argument("--top-k", type=positive, help="draw from the k likeliest words (default: as trained)")
    draw.add_argument("--top-p", type=float, help="draw from the words that hold this probability (default: as trained)")
    draw.add_argument("--complete", type=Path, metavar="PICTURE", help="a picture whose top stays; the rest is drawn")
    draw.add_argument("--keep-rows", type=positive, metavar="R", help="rows of words that stay (default: half of them)")
    draw.add_argument("--keep-mask", type=Path, metavar="MASK", help="a picture, white where the other one stays")
    draw.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return draw


@dataclass(frozen=True)
class Original:
    """A picture to be completed, (H, W, 3), and the cells of it that stay (side, side)."""

    picture: np.ndarray
    kept: np.ndarray


def run(options: argparse.Namespace) -> None:
    """Draws what was asked for; a bad request is refused before a model is loaded."""
    prompts = read_prompts(options.prompt, options.prompts)
    changed(Settings(), **_changes(options))
    picture, mask = _pictures(options)
    package = load_package(options.package, options.device)
    original = None if picture is None else _original(package, picture, mask, options.keep_rows)
    draw_all(package, prompts, options, original)


def draw_all(
    package: Package, prompts: list[str], options: argparse.Namespace, original: Original | None = None
) -> None:
    """One grid per prompt, best first, and the single pictures in a folder beside it."""
    given = None if original is None else given_words(package.image_tokenizer, original.picture, original.kept)
    shown = None if original is None else faded(original.picture, original.kept)
    for number, (prompt, name) in enumerate(zip(prompts, distinct_slugs(prompts), strict=True)):
        started = time.monotonic()
        drawn = package.draw(prompt, options.candidates, options.seed, given, **_changes(options))
        path = options.out / f"{name}{'' if original is None else '-completed'}-seed{options.seed}.png"
        write_bytes(path, images.encode_png(best_first(drawn, shown)))
        for rank, one in enumerate(drawn):
            write_bytes(path.with_suffix("") / f"{rank:03d}.png", images.encode_png(one.picture))
        place = f"[{number + 1}/{len(prompts)}] " if len(prompts) > 1 else ""
        print(f"{place}{prompt}: {len(drawn)} candidates in {time.monotonic() - started:.1f} s -> {path}", flush=True)


def best_first(drawn: list[Candidate], original: np.ndarray | None = None) -> np.ndarray:
    """A contact sheet of candidates in their order, each with its score below; before them what they were given."""
    pictures, labels = [one.picture for one in drawn], [f"{one.score:.3f}" for one in drawn]
    if original is not None:
        pictures, labels = [original, *pictures], ["given", *labels]
    zoom = max(1, 128 // pictures[0].shape[0])
    return images.grid(np.stack(pictures), columns=min(8, len(pictures)), labels=labels, zoom=zoom)


def _pictures(options: argparse.Namespace) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The picture to complete and its mask, where they are asked for; raises UserError before any model is loaded."""
    if options.complete is None:
        for flag, value in (("--keep-rows", options.keep_rows), ("--keep-mask", options.keep_mask)):
            if value is not None:
                raise UserError(f"{flag} says what stays of a picture, but no picture is given. Name it with --complete")
        return None, None
    if options.keep_rows is not None and options.keep_mask is not None:
        raise UserError("--keep-rows and --keep-mask both say what stays. Give one of them")
    # what is transparent in a mask is not painted white, so it does not stay
    mask = None if options.keep_mask is None else read_picture(options.keep_mask, background=(0, 0, 0))
    return read_picture(options.complete), mask


def _original(package: Package, picture: np.ndarray, mask: np.ndarray | None, rows: int | None) -> Original:
    """The picture as the models see it, and what stays of it; raises UserError where all or nothing would."""
    side = side_of(package.image_tokenizer.scales)
    kept = kept_by_mask(mask, side) if mask is not None else top_rows(side, side // 2 if rows is None else rows)
    return Original(images.fit_square(picture, package.image_tokenizer.image_size), kept)


def _changes(options: argparse.Namespace) -> dict:
    names = ("temperature", "top_k", "top_p", "guidance")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
