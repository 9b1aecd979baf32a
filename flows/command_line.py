"""What the commands of this package share: their arguments, and one sentence for an error."""

from contextlib import AbstractContextManager

from thousandwords.core import command_line
from thousandwords.core.command_line import parser
from thousandwords.core.errors import UserError


def parse_targets(description: str | None, argv: list[str] | None) -> list[str]:
    """The stages that the user names; none: all."""
    arguments = parser(description)
    arguments.add_argument("stages", nargs="*", help="only these stages and what they need (default: all)")
    return arguments.parse_args(argv).stages


def one_sentence(program: str, code: int = 1) -> AbstractContextManager[None]:
    """End the program with one sentence for a UserError, or for the failure of a stage."""
    return command_line.one_sentence(program, code, (RuntimeError, UserError))
