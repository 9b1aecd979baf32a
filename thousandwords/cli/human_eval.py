"""python -m thousandwords human-eval-sheet --a FOLDER --b FOLDER --out sheet.html
python -m thousandwords human-eval-votes --key sheet-key.json anna.csv ben.csv ...

A page on which people vote between the best images of two runs without knowing which is which, and its key
(sheet-key.json), to be kept secret; `make human-eval-sheet` does the same for revisions. Then the votes are
counted: whose images the majority chose, per question, with intervals, in votes.json and votes.md.
"""

import argparse
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thousandwords.cli.compare import add_run_options, read_runs
from thousandwords.cli.inputs import positive
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_bytes, write_json
from thousandwords.reporting.human_eval_votes import count_votes, lines, markdown, read_votes

FIX = "Give the sheet-key.json that was written beside the sheet"


def add_sheet_options(parser: argparse.ArgumentParser) -> None:
    add_run_options(parser)
    add = parser.add_argument
    add("--out", type=Path, default=Path("sheet.html"), help="the page (default: sheet.html)")
    add("--prompts", type=positive, default=50, help="maximum number of image pairs (default: 50)")
    add("--seed", type=int, help="chooses prompts and sides (default: a random one, stored in the key)")


def make_sheet(options: argparse.Namespace) -> None:
    """Write the sheet and its key."""
    # imported here: it needs jinja2, which the library alone does not install
    from thousandwords.reporting import human_eval_sheet

    a, b, _ = read_runs(options)
    # a seed that can be guessed gives the sides away: the code that shuffles by it is public
    seed = secrets.randbits(32) if options.seed is None else options.seed
    page, key = human_eval_sheet.make_sheet(a, b, options.prompts, seed)
    key_file = options.out.with_name(f"{options.out.stem}-key.json")
    write_json(key_file, key)
    write_bytes(options.out, page.encode())
    num_identical = key["left_out_because_alike"]
    left_out = f"; {num_identical} were left out because both images are the same" if num_identical else ""
    print(f"{len(key['prompts'])} pairs{left_out}")
    print(
        f"-> {options.out}: send it to five people or more. {key_file} says which side is which: keep it secret"
    )


def add_votes_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="CSV", help="the votes, a file per rater")
    add("--key", type=Path, required=True, help="the key of the sheet")
    add("--out", type=Path, default=Path("votes.json"), help="and Markdown beside it (default: votes.json)")


def read_key(path: Path) -> Mapping:
    """The key of a sheet; raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no file {path}. {FIX}")
    try:
        key = json.loads(path.read_bytes())
        prompts = key["prompts"]
        numbers, sides = [each["number"] for each in prompts], {each["left"] for each in prompts}
        if numbers != [*range(1, len(prompts) + 1)] or sides - {"a", "b"} or {"sheet", "a", "b"} - set(key):
            raise ValueError("it lacks a part")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is not the key of a sheet ({error.__class__.__name__}). {FIX}") from error
    return key


def print_votes(options: argparse.Namespace) -> None:
    """Print the shares, and write them."""
    key = read_key(options.key)
    results = count_votes(read_votes(options.files, key), key, np.random.default_rng(0))
    markdown_file = options.out.with_suffix(".md")
    write_json(options.out, results)
    write_bytes(markdown_file, markdown(results).encode())
    print("\n".join(lines(results)))
    print(f"-> {options.out}, {markdown_file}")
