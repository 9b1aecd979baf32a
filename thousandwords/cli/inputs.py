"""Inputs of the commands: prompts, numbers, and the package."""

import argparse
import sys
from pathlib import Path

from thousandwords.api import EXAMPLE, EXAMPLE_ANSWERS, default_package, read_package
from thousandwords.core.errors import UserError
from thousandwords.inference.config import check_prompt
from thousandwords.inference.package import Package


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too few; give 1 or more")
    return value


def add_package_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which models are used, and where."""
    parser.add_argument(
        "--package", type=Path, help="(default: models/package, or before a first run the example model)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda (default: auto, a GPU where there is one)"
    )


def read_chosen_package(options: argparse.Namespace, command: str) -> Package:
    """The package of `add_package_options`, verified; a line says if it is the example. Raises UserError."""
    folder = options.package or default_package()
    if not options.package and folder == EXAMPLE:
        print(f"{command}: {EXAMPLE_ANSWERS}", file=sys.stderr, flush=True)
    return read_package(folder, options.device)


def read_prompts(prompts: list[str], file: Path | None) -> list[str]:
    """The prompts of a command line, or one per line of a file; raises UserError that names a bad line."""
    if file is None:
        if not prompts:
            raise UserError(
                'no prompt was given. For example: make generate PROMPT="a small red star on sand"'
            )
        return [check_prompt(prompt) for prompt in prompts]
    if not file.is_file():
        raise UserError(f"there is no file {file}. Give a text file with one prompt per line")
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    prompts = [
        check_prompt(line, f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise UserError(f"{file} holds no prompt. Write one per line")
    return prompts
