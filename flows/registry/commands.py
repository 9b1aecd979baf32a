"""Register, promote, roll back, fetch and serve versions of the package in the MLflow registry.

A version is one database row that appears after all its files are stored, in one transaction with the tags
that pin them, so it is absent or complete. `@challenger` is the last version registered, `@champion` the one
in use; `thousandwords.evaluation.gate` decides on a promotion, and concurrent promotions and rollbacks never
mix (`flows.registry.champion`). `fetch` checks every byte against the pinned hashes and leaves loading to
`thousandwords.inference.package`: MLflow's own loader would run code from a version. Not here: deleting
versions.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from flows.registry.champion import read_state, set_champion
from flows.registry.client import registry_client
from flows.registry.create import add_version
from flows.registry.evidence import gate_evidence, gather_evidence
from flows.registry.version_files import fetch_version, read_pinned_manifest
from flows.registry.versions import (
    CHALLENGER,
    NAME,
    VersionSummary,
    find_identical,
    move_alias,
    newest_first,
    number_of,
    read_evidence,
    resolve,
    summarize,
)
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.files import fingerprint
from thousandwords.core.params import read_params
from thousandwords.evaluation.gate import GateConfig, decide

FETCHED = Path(".store/registry")  # may be deleted at any time
IDENTITY = (
    "package",
    "metrics",
    "prompts",
    "problems",
)  # equal in these: the same version, whatever commit or run


class PromotionRejected(UserError):
    """The gate does not let a version become the champion."""


def register(root: Path = Path(".")) -> str:
    """Register the package in `root` as @challenger and return its number.

    The newest version again if nothing changed. Raises DamagedArtefact if there is no complete package, and
    UserError if MLflow does not answer. Problems of the version raise nothing: they are stored with it, and
    prevent its promotion.
    """
    root = Path(root)
    with registry_client(root) as client:
        evidence = gather_evidence(root)
        digest = fingerprint({name: evidence[name] for name in IDENTITY})
        version = find_identical(client, digest) or add_version(client, root, evidence, digest)
        move_alias(client, CHALLENGER, version)
        return version


def promote(root: Path = Path("."), version: str = CHALLENGER) -> str:
    """Make a version (its alias or number) the champion, if the gate of params.yaml accepts it.

    Returns its number. Raises PromotionRejected with every reason, or DamagedArtefact if its files are not
    the pinned ones; the alias then stays. If another version became champion meanwhile, the gate decides
    again, against that one.
    """
    config = read_gate_config(root)
    with registry_client(root) as client, tempfile.TemporaryDirectory() as folder:
        candidate = resolve(client, version)
        number, is_champion = number_of(candidate), False
        while not is_champion:
            state = read_state(client)
            if number in state.champions[-1:]:
                return number
            _judge(config, candidate, resolve(client, state.champions[-1]) if state.champions else None)
            fetch_version(candidate, Path(folder))
            is_champion = set_champion(client, state, (*state.champions, number))
        return number


def _judge(config: GateConfig, candidate: ModelVersion, champion: ModelVersion | None) -> None:
    candidate_evidence = gate_evidence(read_evidence(candidate))
    reasons = decide(config, candidate_evidence, champion and gate_evidence(read_evidence(champion)))
    if reasons:
        against = f"against champion {champion.version}" if champion else "as the first champion"
        lines = "".join(f"\n- {reason}" for reason in reasons)
        raise PromotionRejected(f"version {candidate.version} was not promoted {against}:{lines}")


def rollback(root: Path = Path(".")) -> str:
    """Make the previous champion the champion again and return its number.

    A second rollback goes further back. Raises UserError if there is none, if its files are no longer
    complete, or if another version became champion meanwhile.
    """
    with registry_client(root) as client:
        state = read_state(client)
        if not state.champions:
            raise UserError("there is no champion, so there is nothing to roll back. Run: make promote")
        *previous, champion = state.champions
        if not previous:
            raise UserError(
                f"no version was champion before version {champion}: there is nothing to roll back to"
            )
        read_pinned_manifest(resolve(client, previous[-1]))
        is_done = set_champion(client, state, tuple(previous))
        if not is_done and read_state(client).champions != tuple(previous):
            raise UserError(
                f"version {champion} has just been replaced as champion by another command, so it was not rolled back. "
                "Look with: python -m flows.registry show"
            )
        return previous[-1]


def fetch(version: str, folder: Path, root: Path = Path(".")) -> Path:
    """Fetch and verify the package of a version (its alias or number) into its own folder under `folder`.

    Returns the path. A complete package is not fetched again. Raises UserError if there is no such version,
    and DamagedArtefact if its files are not those it was registered with, or are none that this project
    writes. No code of the version is run.
    """
    with registry_client(root) as client:
        return fetch_version(resolve(client, version), Path(folder))


def list_versions(root: Path = Path(".")) -> list[VersionSummary]:
    """All versions, newest first."""
    with registry_client(root) as client:
        versions = newest_first(client)
        aliases = client.get_registered_model(NAME).aliases if versions else {}
        return [
            summarize(
                version, [alias for alias, number in aliases.items() if str(number) == number_of(version)]
            )
            for version in versions
        ]


def show(root: Path = Path(".")) -> list[str]:
    """A line per version, newest first."""
    return [summary.line for summary in list_versions(root)]


def serve(version: str, port: int, root: Path = Path(".")) -> None:
    """Fetch and verify a version, then replace this process by MLflow's server of it, on 127.0.0.1."""
    package = fetch(version, FETCHED, root)
    model = next(folder for folder in package.parents if (folder / "MLmodel").is_file())
    options = ["-m", str(model.resolve()), "--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "models", "serve", *options])


def read_gate_config(root: Path) -> GateConfig:
    """The section `gate` of `root`'s params.yaml, or the default; raises ConfigError."""
    path = Path(root) / "params.yaml"
    params = read_params(path) if path.is_file() else {}
    return section(params.get("gate", {}), "gate", GateConfig)
