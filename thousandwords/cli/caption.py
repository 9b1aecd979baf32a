"""python -m thousandwords caption a.png b.png --seed 1

A caption of each image, written by the captioner of the package (the preset recaption trains one). The middle square
of an image is read, as in training.
"""

import argparse
from pathlib import Path

from thousandwords.api import check_seed, read_image
from thousandwords.cli.inputs import add_package_options, read_chosen_package


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help="images to caption")
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed may give another caption (default: 0)"
    )
    add_package_options(parser)


def run(options: argparse.Namespace) -> None:
    """Print one line per image; a bad image is rejected before a model is loaded."""
    images, seed = [read_image(path) for path in options.images], check_seed(options.seed)
    captions = read_chosen_package(options, "caption").caption(images, seed)
    for path, caption in zip(options.images, captions, strict=True):
        print(f"{path}: {caption}")
