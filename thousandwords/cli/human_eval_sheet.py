"""python -m thousandwords sheet --a FOLDER --b FOLDER --out sheet.html

A sheet on which people vote between the best pictures of two runs without knowing which is which, and its key (sheet-key.json,
yours alone). `make sheet` does the same for revisions; `votes` counts what comes back.
"""
from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from thousandwords.commands._inputs import positive
from thousandwords.commands.compare import add_runs_to, read_runs
from thousandwords.files import write_bytes, write_json


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `sheet`."""
    command = subparsers.add_parser("sheet", help="a blind vote between two runs, as a page", description=__doc__)
    add_runs_to(command)
    command.add_argument("--out", type=Path, default=Path("sheet.html"), help="the sheet (default: sheet.html)")
    command.add_argument("--prompts", type=positive, default=50, help="pairs on the sheet at most (default: 50)")
    command.add_argument("--seed", type=int, help="which prompts, and which sides (default: drawn anew, and kept in the key)")
    return command


def key_of(sheet: Path) -> Path:
    """Where the key of a sheet lies: key_of("a/sheet.html") -> a/sheet-key.json"""
    return sheet.with_name(f"{sheet.stem}-key.json")


def run(options: argparse.Namespace) -> None:
    """Writes the sheet and its key."""
    from thousandwords.sheets import make_sheet  # here: it needs jinja2, which a bare library comes without

    a, b, _ = read_runs(options)
    # a seed that anybody could guess would tell the sides: the code that shuffles by it is public
    seed = secrets.randbits(32) if options.seed is None else options.seed
    page, key = make_sheet(a, b, options.prompts, seed)
    write_json(key_of(options.out), key)
    write_bytes(options.out, page.encode())
    alike = key["left_out_because_alike"]
    print(f"{len(key['prompts'])} pairs" + (f"; {alike} were left out, their pictures are the same" if alike else ""))
    print(f"-> {options.out}, to be sent to five people or more; {key_of(options.out)} says which side is which: keep it")
