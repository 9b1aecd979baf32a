"""python -m thousandwords human-eval-sheet --a FOLDER --b FOLDER --out sheet.html

A page on which people vote between the best images of two runs without knowing which is which, and its key
(sheet-key.json), to be kept secret. `make human-eval-sheet` does the same for revisions; `human-eval-votes`
counts the votes.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from thousandwords.cli.compare import add_run_options, read_runs
from thousandwords.cli.inputs import positive
from thousandwords.core.files import write_bytes, write_json


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `human-eval-sheet`."""
    parser = subparsers.add_parser(
        "human-eval-sheet", help="a blind vote between two runs, as a page", description=__doc__
    )
    add_run_options(parser)
    parser.add_argument("--out", type=Path, default=Path("sheet.html"), help="the page (default: sheet.html)")
    parser.add_argument(
        "--prompts", type=positive, default=50, help="maximum number of image pairs (default: 50)"
    )
    parser.add_argument(
        "--seed", type=int, help="chooses prompts and sides (default: a random one, stored in the key)"
    )
    return parser


def key_path(sheet: Path) -> Path:
    """The path of a sheet's key: key_path("a/sheet.html") -> a/sheet-key.json"""
    return sheet.with_name(f"{sheet.stem}-key.json")


def run(options: argparse.Namespace) -> None:
    """Write the sheet and its key."""
    # imported here: it needs jinja2, which the library alone does not install
    from thousandwords.reporting.human_eval_sheet import make_sheet

    a, b, _ = read_runs(options)
    # a seed that can be guessed gives the sides away: the code that shuffles by it is public
    seed = secrets.randbits(32) if options.seed is None else options.seed
    page, key = make_sheet(a, b, options.prompts, seed)
    write_json(key_path(options.out), key)
    write_bytes(options.out, page.encode())
    num_identical = key["left_out_because_alike"]
    print(
        f"{len(key['prompts'])} pairs"
        + (f"; {num_identical} were left out because both images are the same" if num_identical else "")
    )
    print(
        f"-> {options.out}: send it to five people or more. {key_path(options.out)} says which side is which: keep it secret"
    )
