"""python -m thousandwords human-eval-votes --key sheet-key.json anna.csv ben.csv ...

Count the votes on a human evaluation sheet: whose images the majority chose, per question, with intervals;
votes.json and votes.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thousandwords.core.errors import UserError
from thousandwords.core.files import write_bytes, write_json
from thousandwords.reporting.human_eval_votes import count_votes, lines, markdown, read_votes

FIX = "Give the sheet-key.json that was written beside the sheet"


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `human-eval-votes`."""
    parser = subparsers.add_parser(
        "human-eval-votes", help="count the votes on a human evaluation sheet", description=__doc__
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="CSV", help="the votes, a file per rater")
    parser.add_argument("--key", type=Path, required=True, help="the key of the sheet")
    parser.add_argument(
        "--out", type=Path, default=Path("votes.json"), help="and Markdown beside it (default: votes.json)"
    )
    return parser


def read_key(path: Path) -> Mapping:
    """The key of a sheet; raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {path}. {FIX}")
    try:
        key = json.loads(path.read_bytes())
        prompts = key["prompts"]
        numbers, sides = [each["number"] for each in prompts], {each["left"] for each in prompts}
        if numbers != [*range(1, len(prompts) + 1)] or sides - {"a", "b"} or {"sheet", "a", "b"} - set(key):
            raise ValueError
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is not the key of a sheet ({error.__class__.__name__}). {FIX}") from error
    return key


def run(options: argparse.Namespace) -> None:
    """Print the shares, and write them."""
    key = read_key(options.key)
    results = count_votes(read_votes(options.files, key), key, np.random.default_rng(0))
    markdown_file = options.out.with_suffix(".md")
    write_json(options.out, results)
    write_bytes(markdown_file, markdown(results).encode())
    print("\n".join(lines(results)))
    print(f"-> {options.out}, {markdown_file}")
