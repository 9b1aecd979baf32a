"""python -m thousandwords COMMAND: generate images, inspect their tokens, compare runs, import weights.

The commands are in `cli/`, each with what adds its options and what runs it.
"""

from __future__ import annotations

import argparse
import functools
import sys

from thousandwords.cli import compare, generate, human_eval, import_weights, likelihood, tokens
from thousandwords.core.errors import UserError

COMMANDS = (  # what adds its options, and what runs it
    *((command.add_to, command.run) for command in (generate, tokens, likelihood, compare)),
    (human_eval.add_sheet_to, human_eval.make_sheet),
    (human_eval.add_votes_to, human_eval.print_votes),
    (import_weights.add_to, import_weights.run),
)


def main(argv: list[str] | None = None) -> None:
    """Run one command; an error that the user can fix ends it with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m thousandwords", description=__doc__)
    keeps_lines = functools.partial(
        argparse.ArgumentParser, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(
        required=True, dest="command", metavar="command", parser_class=keeps_lines
    )
    for add_to, run in COMMANDS:
        add_to(subparsers).set_defaults(run=run)
    options = parser.parse_args(argv)
    try:
        options.run(options)
    except UserError as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
