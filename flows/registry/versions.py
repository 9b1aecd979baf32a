"""Versions of the package in the registry: looked up by alias or number, and the content of their tags."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from stages.runtime.tracking import tracking_uri
from thousandwords.core.errors import UserError
from thousandwords.core.files import translate_write_errors
from thousandwords.core.manifest import DamagedArtefact

NAME = "thousandwords"
CHALLENGER, CHAMPION = "challenger", "champion"
PINNED = "files.sha256"  # tag of each version that `register` made: the hash of the manifest of all files
EVIDENCE = "evidence"
CONTENT = "content.sha256"  # tag: equal in two versions of the same package, metrics and problems
FIX = "Do not use it: register the package again, or roll back"


@contextlib.contextmanager
def registry_client(root: Path) -> Iterator[mlflow.MlflowClient]:
    """A client of this project's registry; MLflow's errors become UserErrors."""
    uri, folder = tracking_uri(Path(root)), Path(root).resolve() / ".mlflow"
    try:
        if uri.startswith(f"sqlite:///{folder}/"):
            with translate_write_errors(folder.parent):
                folder.mkdir(exist_ok=True)
        yield mlflow.MlflowClient(uri, uri)
    except MlflowException as error:
        raise UserError(
            f"MLflow at {uri} rejected the request: {str(error)[:300]}. Start it, or unset MLFLOW_TRACKING_URI"
        ) from error


def resolve(client: mlflow.MlflowClient, version: str) -> ModelVersion:
    """The version with that alias or number; raises UserError."""
    try:
        if version.isdecimal():
            return client.get_model_version(NAME, version)
        return client.get_model_version_by_alias(NAME, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        fix = "make promote" if version == CHAMPION else "python -m flows.registry register"
        raise UserError(f"the registry has no version {version!r} of {NAME}. Run: {fix}") from error


def move_alias(client: mlflow.MlflowClient, alias: str, version: str) -> None:
    """Point an alias at a version; at every moment it names the old or the new one."""
    try:
        client.set_registered_model_alias(NAME, alias, version)
    except MlflowException:  # two processes created it at once, and MLflow failed; now it exists
        client.set_registered_model_alias(NAME, alias, version)


def newest_first(client: mlflow.MlflowClient, name: str = NAME) -> list[ModelVersion]:
    """All versions of a registered model; MLflow's search returns them without their aliases."""
    versions, token = [], None
    while token != "":
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        versions, token = versions + page, page.token or ""
    return sorted(versions, key=lambda version: int(version.version), reverse=True)


def pinned_sha256(version: ModelVersion) -> str:
    """The sha256 of its manifest. Raises DamagedArtefact if there is none."""
    if sha256 := version.tags.get(PINNED):
        return sha256
    found = f"{label_of(version)} pins no files (it has no tag {PINNED})"
    raise DamagedArtefact(f"{found}, so it was not registered completely. {FIX}")


def number_of(version: ModelVersion) -> str:
    return str(version.version)  # an int from a database, text from a server


def label_of(version: ModelVersion) -> str:
    return f"version {version.version} of {version.name}"


@dataclass(frozen=True)
class VersionSummary:
    """The tags of a version in short."""

    number: str
    aliases: tuple[str, ...]
    package: str  # sha256 of the package's manifest
    commit: str
    soundness: str  # "sound", "1 problem", "2 problems" when it was registered

    def __str__(self) -> str:
        """ "version 3  package 0f1e2d3c4b5a  commit 9a8b7c6d  sound @challenger"."""
        aliases, commit = "".join(f" @{alias}" for alias in self.aliases), self.commit[:8]
        return (
            f"version {self.number}  package {self.package[:12]}  commit {commit}  {self.soundness}{aliases}"
        )


def summarize(version: ModelVersion, aliases: dict[str, str]) -> VersionSummary:
    """`aliases` are all of the registered model: {alias: number}."""
    tags, number = version.tags, number_of(version)
    count = len(json.loads(tags.get(EVIDENCE, "{}")).get("problems", []))
    soundness = f"{count} problem{'s' * (count > 1)}" if count else "sound"
    own = tuple(alias for alias, other in sorted(aliases.items()) if str(other) == number)
    package, commit = tags.get("package.sha256", "none"), tags.get("git.commit", "none")
    return VersionSummary(number, own, package, commit, soundness)
