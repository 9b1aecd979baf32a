"""python -m thousandwords compare --a FOLDER --b FOLDER --out compare.html

Two finished runs side by side, each a folder with results/ in it: pictures of the same prompts, and figures. `make compare` does
the same for revisions, and adds what git and DVC know of them.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from thousandwords.commands._inputs import positive
from thousandwords.files import write_bytes
from thousandwords.runs import Run, read_run


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `compare`."""
    command = subparsers.add_parser("compare", help="two finished runs side by side, as a page", description=__doc__)
    add_runs_to(command)
    command.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (default: compare.html)")
    command.add_argument("--prompts", type=positive, default=48, help="prompts on the page (default: 48)")
    command.add_argument("--best", type=positive, default=4, help="pictures of each, best first (default: 4)")
    return command


def add_runs_to(command: argparse.ArgumentParser) -> None:
    """The two runs, and what is told of them."""
    command.add_argument("--a", type=Path, required=True, metavar="FOLDER", help="a run: the folder that holds its results/")
    command.add_argument("--b", type=Path, required=True, metavar="FOLDER", help="the other one")
    command.add_argument("--told", type=Path, metavar="JSON", help="names, commits and differences, as flows.compare writes them")


def read_runs(options: argparse.Namespace) -> tuple[Run, Run, dict]:
    """Both runs, verified, and what is told of them."""
    told = json.loads(options.told.read_bytes()) if options.told else {}
    names = [told.get(side, {}).get("name", str(getattr(options, side))) for side in ("a", "b")]
    return read_run(options.a, names[0]), read_run(options.b, names[1]), told


def run(options: argparse.Namespace) -> None:
    """Writes the page and prints the figures."""
    from thousandwords.comparison import compare  # here: it needs jinja2, which a bare library comes without

    a, b, told = read_runs(options)
    page, lines = compare(a, b, told, options.prompts, options.best)
    write_bytes(options.out, page.encode())
    print("\n".join(lines))
    print(f"-> {options.out}")
