"""python -m thousandwords votes --key sheet-key.json anna.csv ben.csv ...

Counts what people voted on a sheet: whose pictures the majority chose, per question, with intervals; votes.json and votes.md.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thousandwords.errors import UserError
from thousandwords.files import write_bytes, write_json
from thousandwords.votes import count_votes, lines, markdown, read_votes

MEND = "Give the sheet-key.json that was written beside the sheet"


def add_to(subparsers) -> argparse.ArgumentParser:
    """The command line of `votes`."""
    command = subparsers.add_parser("votes", help="what people voted on a sheet", description=__doc__)
    command.add_argument("files", nargs="+", type=Path, metavar="CSV", help="the votes, a file per rater")
    command.add_argument("--key", type=Path, required=True, help="the key of the sheet")
    command.add_argument("--out", type=Path, default=Path("votes.json"), help="and Markdown beside it (default: votes.json)")
    return command


def read_key(path: Path) -> Mapping:
    """The key of a sheet; raises UserError."""
    try:
        key = json.loads(path.read_bytes())
        numbers = [prompt["number"] for prompt in key["prompts"]]
        sides = {prompt["left"] for prompt in key["prompts"]}
        is_key = numbers == [*range(1, len(numbers) + 1)] and sides <= {"a", "b"} and {"sheet", "a", "b"} <= set(key)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}. {MEND}") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is no key of a sheet ({error.__class__.__name__}). {MEND}") from error
    if not is_key:
        raise UserError(f"{path} is no key of a sheet. {MEND}")
    return key


def run(options: argparse.Namespace) -> None:
    """Prints the shares, and writes them."""
    key = read_key(options.key)
    counted = count_votes(read_votes(options.files, key), key, np.random.default_rng(0))
    write_json(options.out, counted)
    write_bytes(options.out.with_suffix(".md"), markdown(counted).encode())
    print("\n".join(lines(counted)))
    print(f"-> {options.out}, {options.out.with_suffix('.md')}")
