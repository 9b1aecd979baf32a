"""python -m flows.registry register|promote|rollback|show|fetch|serve: versions of the package in the MLflow registry.

A version is one row that appears after all its files are stored, in one transaction with the tags that pin them, so it is absent
or complete. `@challenger` is the last one registered, `@champion` the one in use; the gate (`thousandwords.gate`) stands between
them, and promotions and rollbacks at the same time never mix (`flows._champions`). `fetch` checks every byte against the pinned
hashes and leaves loading to `thousandwords.package`: MLflow's own loader runs code that it finds in a version. Left out: removing
versions.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import yaml
from mlflow.entities.model_registry import ModelVersion

from flows._champions import crown, standing
from flows._client import answering
from flows._evidence import evidence_of, gather
from flows._new_version import add_version
from flows._stored import fetch_version, manifest_of
from flows._versions import (
    CHALLENGER,
    CHAMPION,
    NAME,
    Known,
    in_short,
    known_of,
    move,
    newest_first,
    newest_with,
    number_of,
    resolve,
)
from thousandwords.config import section
from thousandwords.errors import UserError
from thousandwords.files import fingerprint
from thousandwords.gate import Config, decide

FETCHED = Path(".store/registry")  # may be deleted at any time
SAME = ("package", "metrics", "prompts", "problems")  # a version is the same, whatever commit or run it is found in, by these


class Refused(UserError):
    """The gate does not let a version become the champion."""


def register(root: Path = Path(".")) -> str:
    """A new version of the package in `root`, by its number, as @challenger; the newest one again where nothing has changed.

    Raises DamagedArtefact where there is no whole package, and UserError where MLflow does not answer. What speaks against the
    version does not raise: it is kept with it, and bars it from promotion.
    """
    root = Path(root)
    with answering(root) as client:
        known = gather(root)
        digest = fingerprint({name: known[name] for name in SAME})
        version = newest_with(client, digest) or add_version(client, root, known, digest)
        move(client, CHALLENGER, version)
        return version


def promote(root: Path = Path("."), wanted: str = CHALLENGER) -> str:
    """Makes a version (its alias or number) the champion, if the gate of params.yaml lets it; returns its number.

    Raises Refused with every reason, or DamagedArtefact where its files are not the pinned ones; the alias is then as it was.
    Where another became champion in the meantime, the gate judges again, beside that one.
    """
    config = gate_of(root)
    with answering(root) as client, tempfile.TemporaryDirectory() as folder:
        candidate = resolve(client, wanted)
        number, is_champion = number_of(candidate), False
        while not is_champion:
            seen = standing(client)
            if number in seen.champions[-1:]:
                return number
            _judge(config, candidate, resolve(client, seen.champions[-1]) if seen.champions else None)
            fetch_version(candidate, Path(folder))
            is_champion = crown(client, seen, (*seen.champions, number))
        return number


def _judge(config: Config, candidate: ModelVersion, champion: ModelVersion | None) -> None:
    refusals = decide(config, evidence_of(known_of(candidate)), champion and evidence_of(known_of(champion)))
    if refusals:
        against = f"beside champion {champion.version}" if champion else "as the first champion"
        lines = "".join(f"\n- {refusal}" for refusal in refusals)
        raise Refused(f"version {candidate.version} was not promoted {against}:{lines}")


def rollback(root: Path = Path(".")) -> str:
    """Makes the champion before this one the champion again; returns its number. Once more goes further back.

    Raises UserError where there is none, where its files are no longer all there, or where another became champion meanwhile.
    """
    with answering(root) as client:
        seen = standing(client)
        if not seen.champions:
            raise UserError("there is no champion, so there is nothing to roll back. Run: make promote")
        *before, champion = seen.champions
        if not before:
            raise UserError(f"no version was champion before version {champion}: there is nothing to roll back to")
        manifest_of(resolve(client, before[-1]))
        if not crown(client, seen, tuple(before)) and standing(client).champions != tuple(before):
            raise UserError(
                f"somebody else has just moved the champion away from version {champion}, so it was not rolled back. "
                "Look with: python -m flows.registry show"
            )
        return before[-1]


def fetch(wanted: str, folder: Path, root: Path = Path(".")) -> Path:
    """The package of a version (its alias or number), verified, in a folder of its own under `folder`; returns where.

    What is there and whole is not fetched again. Raises UserError where there is no such version, and DamagedArtefact where
    its files are not those it was registered with, or no version of ours would hold them. Nothing of it is run.
    """
    with answering(root) as client:
        return fetch_version(resolve(client, wanted), Path(folder))


def listed(root: Path = Path(".")) -> list[Known]:
    """All versions in short, newest first."""
    with answering(root) as client:
        versions = newest_first(client)
        aliases = client.get_registered_model(NAME).aliases if versions else {}
        return [in_short(one, [alias for alias, number in aliases.items() if str(number) == number_of(one)]) for one in versions]


def show(root: Path = Path(".")) -> list[str]:
    """A line per version, newest first."""
    return [known.line for known in listed(root)]


def serve(wanted: str, port: int, root: Path = Path(".")) -> None:
    """Turns this process into MLflow's server of that version, on 127.0.0.1; its files are verified first, and then stay here."""
    package = fetch(wanted, FETCHED, root)
    model = next(folder for folder in package.parents if (folder / "MLmodel").is_file())
    words = ["models", "serve", "-m", str(model.resolve()), "--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *words])


def gate_of(root: Path) -> Config:
    """The section `gate` of `root`'s params.yaml, or the usual one; raises ConfigError."""
    path = Path(root) / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return section((params or {}).get("gate", {}), "gate", Config)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("register", help="models/package becomes a version, @challenger")
    promoted = commands.add_parser("promote", help="@challenger becomes @champion, if the gate lets it")
    promoted.add_argument("version", nargs="?", default=CHALLENGER, help="an alias or a number (default: challenger)")
    commands.add_parser("rollback", help="the champion before this one is champion again")
    commands.add_parser("show", help="all versions")
    fetched = commands.add_parser("fetch", help="a version's package, verified, into a folder")
    fetched.add_argument("version", nargs="?", default=CHAMPION, help="an alias or a number (default: champion)")
    fetched.add_argument("--out", type=Path, default=Path("models/fetched"), help="(default: models/fetched)")
    served = commands.add_parser("serve", help="a version answers prompts with pictures, at /invocations")
    served.add_argument("version", nargs="?", default=CHAMPION, help="an alias or a number (default: champion)")
    served.add_argument("--port", type=int, default=5001, help="(default: 5001)")
    options = parser.parse_args(argv)
    try:
        if options.command == "serve":
            serve(options.version, options.port)
        print(_obey(options))
    except UserError as error:
        print(f"registry: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _obey(options: argparse.Namespace) -> str:
    if options.command == "register":
        return f"version {register()} is the challenger"
    if options.command == "promote":
        return f"version {promote(wanted=options.version)} is the champion"
    if options.command == "rollback":
        return f"version {rollback()} is the champion again"
    if options.command == "fetch":
        return str(fetch(options.version, options.out))
    return "\n".join(show()) or "nothing has been registered yet. Run: python -m flows.registry register"


if __name__ == "__main__":
    main()
