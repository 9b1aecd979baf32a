"""Versions of the package in the registry: found by alias or number, and what their tags say of them."""
from __future__ import annotations

import json
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact

NAME = "thousandwords"
CHALLENGER, CHAMPION = "challenger", "champion"
PINNED = "files.sha256"  # the tag that names the manifest of all files; a version without it is nobody's
EVIDENCE = "evidence"
SAME_AS = "evidence.sha256"
MEND = "Do not use it: register the package again, or roll back"


def resolve(client: mlflow.MlflowClient, wanted: str) -> ModelVersion:
    """The version of that alias or number; raises UserError."""
    try:
        if wanted.isdecimal():
            return client.get_model_version(NAME, wanted)
        return client.get_model_version_by_alias(NAME, wanted)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        mend = "make promote" if wanted == CHAMPION else "python -m flows.registry register"
        raise UserError(f"the registry has no version {wanted!r} of {NAME}. Run: {mend}") from error


def move(client: mlflow.MlflowClient, alias: str, version: str) -> None:
    """Points an alias at a version: at every moment it is the one or the other."""
    try:
        client.set_registered_model_alias(NAME, alias, version)
    except MlflowException:  # MLflow cannot make an alias twice at once; now it is there, and only moves
        client.set_registered_model_alias(NAME, alias, version)


def newest_first(client: mlflow.MlflowClient, name: str = NAME) -> list[ModelVersion]:
    """All versions of a registered model; those of a search know none of their aliases."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version), reverse=True)


def newest_with(client: mlflow.MlflowClient, digest: str) -> str | None:
    """The newest version, if it is the very same: the same package, figures and problems."""
    newest = next(iter(newest_first(client)), None)
    return number_of(newest) if newest and newest.tags.get(SAME_AS) == digest else None


def known_of(version: ModelVersion) -> dict:
    """What `flows._evidence.gather` knew when it was registered. Raises DamagedArtefact where it pins no files."""
    pinned_by(version)
    return json.loads(version.tags[EVIDENCE])


def pinned_by(version: ModelVersion) -> str:
    """The sha256 of its manifest. Raises DamagedArtefact where there is none."""
    pinned, label = version.tags.get(PINNED), label_of(version)
    if not pinned:
        raise DamagedArtefact(f"{label} pins no files (it has no tag {PINNED}), so it was not registered whole. {MEND}")
    return pinned


def number_of(version: ModelVersion) -> str:
    return str(version.version)  # a whole number from a database, text from a server


def label_of(version: ModelVersion) -> str:
    return f"version {version.version} of {version.name}"


@dataclass(frozen=True)
class Known:
    """What the tags of a version say of it, in short."""

    number: str
    aliases: tuple[str, ...]
    package: str  # sha256 of the package's manifest
    commit: str
    problems: int  # that spoke against it when it was registered

    @property
    def soundness(self) -> str:
        return f"{self.problems} problem{'s' * (self.problems > 1)}" if self.problems else "sound"

    @property
    def line(self) -> str:
        """"version 3  package 0f1e2d3c4b5a  commit 9a8b7c6d  sound @challenger"."""
        named = "".join(f" @{alias}" for alias in self.aliases)
        return f"version {self.number}  package {self.package[:12]}  commit {self.commit[:8]}  {self.soundness}{named}"


def in_short(version: ModelVersion, aliases: list[str]) -> Known:
    tags = version.tags
    problems = len(json.loads(tags.get(EVIDENCE, "{}")).get("problems", []))
    package, commit = tags.get("package.sha256", "none"), tags.get("git.commit", "none")
    return Known(number_of(version), tuple(sorted(aliases)), package, commit, problems)
