"""python -m flows.registry register|promote|rollback|show|fetch|serve: versions in the MLflow registry."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows.registry.commands import fetch, promote, register, rollback, serve, show
from flows.registry.versions import CHALLENGER, CHAMPION
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable


def main(argv: list[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    try:
        if options.command != "show":
            check_writable()
        if options.command == "serve":
            serve(options.version, options.port)
        print(_run(options))
    except UserError as error:
        print(f"registry: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("register", help="models/package becomes a version, @challenger")
    promote_parser = commands.add_parser(
        "promote", help="@challenger becomes @champion, if the gate accepts it"
    )
    commands.add_parser("rollback", help="the previous champion becomes champion again")
    commands.add_parser("show", help="all versions")
    fetch_parser = commands.add_parser("fetch", help="fetch a version's package, verified, into a folder")
    serve_parser = commands.add_parser(
        "serve", help="serve a version: prompts in, images out, at /invocations"
    )
    for command, default in (
        (promote_parser, CHALLENGER),
        (fetch_parser, CHAMPION),
        (serve_parser, CHAMPION),
    ):
        command.add_argument(
            "version", nargs="?", default=default, help=f"an alias or a number (default: {default})"
        )
    fetch_parser.add_argument(
        "--out", type=Path, default=Path("models/fetched"), help="(default: models/fetched)"
    )
    serve_parser.add_argument("--port", type=int, default=5001, help="(default: 5001)")
    return parser


def _run(options: argparse.Namespace) -> str:
    if options.command == "register":
        return f"version {register()} is the challenger"
    if options.command == "promote":
        return f"version {promote(version=options.version)} is the champion"
    if options.command == "rollback":
        return f"version {rollback()} is the champion again"
    if options.command == "fetch":
        return str(fetch(options.version, options.out))
    return "\n".join(show()) or "nothing has been registered yet. Run: python -m flows.registry register"


if __name__ == "__main__":
    main()
