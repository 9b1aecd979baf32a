"""What the commands of this package share: their arguments, and one sentence for an error."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from thousandwords.core.errors import UserError


def parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse_targets(description: str | None, argv: list[str] | None) -> list[str]:
    """The stages that the user names; none: all."""
    arguments = parser(description)
    arguments.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    return arguments.parse_args(argv).stages


@contextlib.contextmanager
def one_sentence(program: str, code: int = 1) -> Iterator[None]:
    """End the program with one sentence and this exit code for an error that the user can fix."""
    try:
        yield
    except (RuntimeError, UserError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(code) from error
