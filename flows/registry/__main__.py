"""python -m flows.registry register|promote|rollback|show|fetch|serve|copy: versions in the MLflow registry."""

import argparse
import contextlib
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from flows.command_line import one_sentence, parser
from flows.registry.commands import copy_versions, fetch, promote, register, rollback, serve, show
from flows.registry.evidence import gate_evidence
from flows.registry.versions import CHALLENGER, CHAMPION, newest_first, registry_client, resolve
from stages.runtime.tracking import tracking_uri
from thousandwords.core.errors import UserError
from thousandwords.core.files import check_writable

HELP = {
    "register": "models/package becomes a version, @challenger",
    "promote": "@challenger becomes @champion, if the gate accepts it",
    "rollback": "the previous champion becomes champion again",
    "show": "all versions",
    "fetch": "fetch a version's package, verified, into a folder",
    "serve": "serve a version: prompts in, images out, at /invocations",
    "copy": "copy this folder's own versions to the registry in use, such as that of make servers",
}
VERSIONS = {"promote": CHALLENGER, "fetch": CHAMPION, "serve": CHAMPION}  # the default of each


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    subparsers = arguments.add_subparsers(dest="command", required=True)
    commands = {name: subparsers.add_parser(name, help=text) for name, text in HELP.items()}
    for name, default in VERSIONS.items():
        text = f"an alias or a number (default: {default})"
        commands[name].add_argument("version", nargs="?", default=default, help=text)
    add = commands["fetch"].add_argument
    add("--out", type=Path, default=Path("models/fetched"), help="(default: models/fetched)")
    add, text = commands["serve"].add_argument, "a further host name to answer to"
    add("--port", type=int, default=5001, help="(default: 5001)")
    add("--allowed-host", action="append", default=[], metavar="NAME", help=text)
    options = arguments.parse_args(argv)
    with one_sentence("registry", code=2):
        if options.command != "show":
            check_writable()
        print(_run(options))


def _run(options: argparse.Namespace) -> str:
    if options.command == "register":
        return _describe_challenger(register())
    if options.command == "promote":
        return f"version {promote(version=options.version)} is the champion"
    if options.command == "rollback":
        return f"version {rollback()} is the champion again"
    if options.command == "fetch":
        return str(fetch(options.version, options.out))
    if options.command == "serve":
        serve(options.version, options.port, options.allowed_host)
    if options.command == "copy":
        if not (own := _local_registry()):
            raise UserError(
                "there is no other registry to copy from: this folder's own is the one in use, or it has none. "
                "Copy with the servers up (make servers), or with MLFLOW_TRACKING_URI set"
            )
        copied = copy_versions(own)
        return f"copied: versions {', '.join(copied)}" if copied else "all versions were there already"
    nothing = "nothing has been registered yet. Run: python -m flows.registry register"
    return "\n".join([*(show() or [nothing]), *_describe_local_registry()])


def _describe_challenger(version: str) -> str:
    """With everything that already speaks against promoting it, such as a git tree with uncommitted changes."""
    with registry_client(Path(".")) as client:
        problems = gate_evidence(client, resolve(client, version)).problems
    rejected = "; promote would reject it:" if problems else ""
    return "\n- ".join([f"version {version} is the challenger{rejected}", *problems])


def _local_registry() -> str | None:
    """This folder's own registry while another one, such as that of `make servers`, is used."""
    database = Path(".mlflow/mlflow.db").resolve()
    own = f"sqlite:///{database}"
    return None if tracking_uri() == own or not database.is_file() else own


def _describe_local_registry() -> list[str]:
    """A line if it has versions."""
    if not (own := _local_registry()):
        return []
    num_versions = 0
    with contextlib.suppress(MlflowException, SQLAlchemyError):  # a damaged file is no reason to end here
        num_versions = len(newest_first(mlflow.MlflowClient(own, own)))
    text = (
        f"{num_versions} more in this folder's own registry, not on {tracking_uri()}. To list them: MLFLOW_TRACKING_URI={own} "
        "python -m flows.registry show. To copy them: python -m flows.registry copy"
    )
    return [text] if num_versions else []


if __name__ == "__main__":
    main()
