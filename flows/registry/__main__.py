"""python -m flows.registry register|promote|rollback|show|fetch|serve: versions in the MLflow registry."""

import argparse
from pathlib import Path

import mlflow

from flows.command_line import one_sentence, parser
from flows.registry.commands import fetch, promote, register, rollback, serve, show
from flows.registry.evidence import gate_evidence
from flows.registry.versions import CHALLENGER, CHAMPION, newest_first, registry_client, resolve
from stages.runtime.tracking import tracking_uri
from thousandwords.core.files import check_writable

HELP = {
    "register": "models/package becomes a version, @challenger",
    "promote": "@challenger becomes @champion, if the gate accepts it",
    "rollback": "the previous champion becomes champion again",
    "show": "all versions",
    "fetch": "fetch a version's package, verified, into a folder",
    "serve": "serve a version: prompts in, images out, at /invocations",
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
    nothing = "nothing has been registered yet. Run: python -m flows.registry register"
    return "\n".join([*(show() or [nothing]), *_describe_local_registry()])


def _describe_challenger(version: str) -> str:
    """With everything that already speaks against promoting it, such as a git tree with uncommitted changes."""
    with registry_client(Path(".")) as client:
        problems = gate_evidence(client, resolve(client, version)).problems
    rejected = "".join(f"\n- {problem}" for problem in problems)
    return f"version {version} is the challenger" + (
        f"; promote would reject it:{rejected}" if rejected else ""
    )


def _describe_local_registry() -> list[str]:
    """A line if this folder's own registry has versions while another one, such as that of `make servers`, is used."""
    database = Path(".mlflow/mlflow.db").resolve()
    own = f"sqlite:///{database}"
    if (
        tracking_uri() == own
        or not database.is_file()
        or not (found := newest_first(mlflow.MlflowClient(own, own)))
    ):
        return []
    return [
        f"{len(found)} more in this folder's own registry, not on {tracking_uri()}. To list them: MLFLOW_TRACKING_URI={own} "
        "python -m flows.registry show. To register the model of this folder here: make register"
    ]


if __name__ == "__main__":
    main()
