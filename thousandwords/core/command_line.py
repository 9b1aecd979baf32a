"""What every command has: a parser, one sentence for an error, and a quiet end when its output is not read."""

import argparse
import contextlib
import os
import select
import sys
from collections.abc import Iterator

from thousandwords.core.errors import UserError


def parser(description: str | None = None, **options: object) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of the description."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )


@contextlib.contextmanager
def one_sentence(
    program: str, code: int = 2, errors: tuple[type[Exception], ...] = (UserError,)
) -> Iterator[None]:
    """End the program with one sentence and this exit code for an error that the user can fix.

    Without a word, and with 0, if its output is no longer read: `| head -1` has what it asked for.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        if _is_read(sys.__stdout__.fileno()):  # another pipe has broken
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left at its end
        raise SystemExit(0) from error
    except errors as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(code) from error


def _is_read(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))
