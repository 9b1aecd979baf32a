"""python -m thousandwords likelihood "a small red star on sand" a.png b.png --csv likelihood.csv

How many bits each picture costs under the caption, likeliest first: fewer are likelier. The pictures are measured as the
tokenizer sees them, so that all of them have as many words.
"""
from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from thousandwords.commands._inputs import read_picture
from thousandwords.drawing import check_prompt
from thousandwords.files import write_bytes
from thousandwords.likelihood import Likelihood, likelihood
from thousandwords.package import load_package

COLUMNS = ("picture", "bits_per_picture", "bits_per_word", "caption_bits")


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `likelihood`."""
    command = subparsers.add_parser("likelihood", help="how likely pictures are under a caption", description=__doc__)
    command.add_argument("caption", help="what the pictures are said to show")
    command.add_argument("pictures", nargs="+", type=Path, metavar="picture", help="pictures to compare")
    command.add_argument("--csv", type=Path, help="the same as a table")
    command.add_argument("--package", type=Path, default=Path("models/package"), help="(default: models/package)")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return command


def run(options: argparse.Namespace) -> None:
    """Tells one line per picture; a bad request is refused before a model is loaded."""
    caption = check_prompt(options.caption, "the caption")
    pictures = [read_picture(path) for path in options.pictures]
    package = load_package(options.package, options.device)
    found = zip(options.pictures, likelihood(package, caption, pictures), strict=True)
    ranked = sorted(found, key=lambda pair: pair[1].picture_bits)
    print(f"{'bits per picture':>16}  {'bits per word':>13}  {'bits of the caption':>19}  picture")
    for path, one in ranked:
        print(f"{one.picture_bits:16.2f}  {one.bits_per_word:13.3f}  {one.caption_bits:19.2f}  {path}")
    if options.csv:
        write_bytes(options.csv, table(ranked))


def table(ranked: list[tuple[Path, Likelihood]]) -> bytes:
    """The same as CSV."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows([str(path), one.picture_bits, one.bits_per_word, one.caption_bits] for path, one in ranked)
    return text.getvalue().encode("utf-8", "surrogateescape")
