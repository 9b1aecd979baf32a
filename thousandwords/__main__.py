"""python -m thousandwords <command>: draw pictures, look at the words that they are made of, take over released weights.

One module of `commands/` per command; each adds its own options and says what it does.
"""
from __future__ import annotations

import argparse
import sys

from thousandwords.commands import compare, convert, draw, likelihood, sheet, votes, words
from thousandwords.errors import UserError

COMMANDS = (draw, words, likelihood, compare, sheet, votes, convert)


def main(argv: list[str] | None = None) -> None:
    """Runs one command; what a user can mend ends it with one sentence and code 2."""
    parser = argparse.ArgumentParser(prog="python -m thousandwords", description=__doc__)
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="command")
    for command in COMMANDS:
        command.add_to(subparsers).set_defaults(run=command.run)
    options = parser.parse_args(argv)
    try:
        options.run(options)
    except UserError as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
