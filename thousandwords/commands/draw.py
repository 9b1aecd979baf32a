"""python -m thousandwords draw "a small red star above a large blue square" --candidates 16 --seed 7

Draws ranked candidates from a trained package: a best-first grid per prompt, and every picture by itself.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from thousandwords import images
from thousandwords.drawing import Settings, changed, check_prompt
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
    draw.add_argument("--candidates", "-n", type=_positive, default=32, help="drawn per prompt (default: 32)")
    draw.add_argument("--seed", type=int, default=0, help="another seed, other pictures (default: 0)")
    draw.add_argument("--guidance", type=float, help="above 1: closer to the caption (default: as trained)")
    draw.add_argument("--temperature", type=float, help="below 1: safer, above: wilder (default: as trained)")
    draw.add_argument("--top-k", type=_positive, help="draw from the k likeliest words (default: as trained)")
    draw.add_argument("--top-p", type=float, help="draw from the words that hold this probability (default: as trained)")
    draw.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return draw


def run(options: argparse.Namespace) -> None:
    """Draws what was asked for; a bad request is refused before a model is loaded."""
    prompts = _prompts(options)
    changed(Settings(), **_changes(options))
    draw_all(load_package(options.package, options.device), prompts, options)


def draw_all(package: Package, prompts: list[str], options: argparse.Namespace) -> None:
    """One grid per prompt, best first, and the single pictures in a folder beside it."""
    for number, (prompt, name) in enumerate(zip(prompts, distinct_slugs(prompts), strict=True)):
        started = time.monotonic()
        drawn = package.draw(prompt, options.candidates, options.seed, **_changes(options))
        path = options.out / f"{name}-seed{options.seed}.png"
        write_bytes(path, images.encode_png(best_first(drawn)))
        for rank, one in enumerate(drawn):
            write_bytes(path.with_suffix("") / f"{rank:03d}.png", images.encode_png(one.picture))
        place = f"[{number + 1}/{len(prompts)}] " if len(prompts) > 1 else ""
        print(f"{place}{prompt}: {len(drawn)} candidates in {time.monotonic() - started:.1f} s -> {path}", flush=True)


def best_first(drawn: list[Candidate]) -> np.ndarray:
    """A contact sheet of candidates in their order, each with its score below."""
    pictures = np.stack([one.picture for one in drawn])
    zoom = max(1, 128 // pictures.shape[1])
    return images.grid(pictures, columns=min(8, len(drawn)), labels=[f"{one.score:.3f}" for one in drawn], zoom=zoom)


def _prompts(options: argparse.Namespace) -> list[str]:
    """The prompts of the command line, or one per line of a file; raises UserError before any model is loaded."""
    if options.prompts is None:
        if not options.prompt:
            raise UserError('no prompt was given. For example: make draw PROMPT="a small red star on sand"')
        return [check_prompt(prompt) for prompt in options.prompt]
    if not options.prompts.is_file():
        raise UserError(f"there is no file {options.prompts}. Give a text file with one prompt per line")
    lines = options.prompts.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    numbered = [(f"{options.prompts}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    prompts = [check_prompt(line, where) for where, line in numbered]
    if not prompts:
        raise UserError(f"{options.prompts} holds no prompt. Write one per line")
    return prompts


def _changes(options: argparse.Namespace) -> dict:
    names = ("temperature", "top_k", "top_p", "guidance")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _positive(word: str) -> int:
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too few; give 1 or more")
    return value
