"""python -m thousandwords likelihood "a small red star on sand" a.png b.png --csv likelihood.csv

The bits of each image under the caption, likeliest first: fewer bits are likelier. Images are measured as the
image tokenizer encodes them, so all have the same number of tokens.
"""

import argparse
import csv
import io
from pathlib import Path

from thousandwords.api import read_image
from thousandwords.cli.inputs import add_package_options, read_chosen_package
from thousandwords.core.files import write_bytes
from thousandwords.inference.config import check_prompt
from thousandwords.inference.likelihood import Likelihood, likelihood

COLUMNS = ("image", "bits_per_image", "bits_per_token", "caption_bits")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("caption", help="what the images are said to show")
    add("images", nargs="+", type=Path, metavar="image", help="images to compare")
    add("--csv", type=Path, help="also write the table to this CSV file")
    add_package_options(parser)


def run(options: argparse.Namespace) -> None:
    """Print one line per image; a bad request is rejected before a model is loaded."""
    caption = check_prompt(options.caption, "the caption")
    images = [read_image(path) for path in options.images]
    package = read_chosen_package(options, "likelihood")
    results = zip(options.images, likelihood(package, caption, images), strict=True)
    ranked = sorted(results, key=lambda pair: pair[1].image_bits)
    print(f"{'bits per image':>14}  {'bits per token':>14}  {'bits of the caption':>19}  image")
    for path, result in ranked:
        caption_bits = f"{'–' if result.caption_bits is None else f'{result.caption_bits:.2f}':>19}"
        print(f"{result.image_bits:14.2f}  {result.bits_per_token:14.3f}  {caption_bits}  {path}")
    if not package.generator.models_text:
        print("This generator gives captions no probability of their own.")
    if options.csv:
        write_bytes(options.csv, table(ranked))


def table(ranked: list[tuple[Path, Likelihood]]) -> bytes:
    """The results as CSV."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows(
        [str(path), result.image_bits, result.bits_per_token, result.caption_bits] for path, result in ranked
    )
    return text.getvalue().encode("utf-8", "surrogateescape")
