"""Versions of the package in the registry: looked up by alias or number, the content of their tags, the champion.

The champion is an alias, with a tag of the registered model that holds the champions so far. Promotions and
rollbacks take turns. A turn is a version of a second registered model, which is only a lock: the next version
number is the one thing in MLflow that two clients cannot both get. The lowest open number has the turn. No lock
file, which other machines do not see, and no limit of Prefect, whose server a registry can lack.

Wherever a process dies, the champions are those before its move or those after it. An alias that a user set by
hand is respected: the next move is based on it.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from stages.runtime.tracking import describe_unusable, repair_moved_store, tracking_uri
from thousandwords.core.errors import UserError
from thousandwords.core.files import failpoint, translate_write_errors
from thousandwords.core.manifest import DamagedArtefact

NAME = "thousandwords"
CHALLENGER, CHAMPION = "challenger", "champion"
PINNED = "files.sha256"  # tag of each version that `register` made: the hash of the manifest of all files
CONTENT = "content.sha256"  # tag: equal in two versions of the same package, metrics and problems
PACKAGE, COMMIT, SOUNDNESS = "package.sha256", "git.commit", "soundness"  # tags that `show` prints
TURNS = f"{NAME} lock (not a model)"  # MLflow's pages list it beside the model
LOCK = f"Not a model: a lock. While @champion of {NAME} moves, a version says which command may move it."
CHAMPIONS = "champions"  # tag of the registered model: oldest first
TURN_SECONDS = 30  # after which the turn of a process that died, or hangs, is over
PAUSE_SECONDS = 0.1
RESTORE = "Bring back a copy of that file, or move it away: its versions are then gone, models/package stays"
FIX = "Do not use it: register the package again, or roll back"


@contextlib.contextmanager
def registry_client(root: Path) -> Iterator[mlflow.MlflowClient]:
    """A client of this project's registry; MLflow's errors become UserErrors."""
    uri, folder = tracking_uri(Path(root)), Path(root).resolve() / ".mlflow"
    try:
        if uri.startswith(f"sqlite:///{folder}/"):
            with translate_write_errors(folder.parent):
                folder.mkdir(exist_ok=True)
                repair_moved_store(Path(root))
        yield mlflow.MlflowClient(uri, uri)
    except (MlflowException, SQLAlchemyError) as error:  # a damaged file is met before MLflow's own errors
        raise UserError(describe_unusable(uri, error, RESTORE)) from error


def resolve(client: mlflow.MlflowClient, version: str) -> ModelVersion:
    """The version with that alias or number; raises UserError."""
    try:
        if version.isdecimal():
            return client.get_model_version(NAME, version)
        return client.get_model_version_by_alias(NAME, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        fixes = {CHAMPION: "make promote", CHALLENGER: "make register"}
        fix = fixes.get(version, "python -m flows.registry show, which lists them")
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
    number: str
    aliases: tuple[str, ...]
    package: str  # sha256 of the package's manifest
    commit: str
    soundness: str  # "sound", "1 problem", "2 problems" when it was registered

    def __str__(self) -> str:
        """ "version 3  package 0f1e2d3c4b5a  commit 9a8b7c6d  sound @challenger"."""
        package, commit, aliases = self.package[:12], self.commit[:8], "".join(f" @{a}" for a in self.aliases)
        return f"version {self.number}  package {package}  commit {commit}  {self.soundness}{aliases}"


def summarize(version: ModelVersion, aliases: dict[str, str]) -> VersionSummary:
    """`aliases` are all of the registered model: {alias: number}."""
    tags, number = version.tags, number_of(version)
    own = tuple(alias for alias, other in sorted(aliases.items()) if str(other) == number)
    package, commit = tags.get(PACKAGE, "none"), tags.get(COMMIT, "none")
    return VersionSummary(number, own, package, commit, tags.get(SOUNDNESS, "of an earlier commit"))


def soundness(problems: list[str]) -> str:
    """soundness([]) -> "sound"; with one problem "1 problem"."""
    return f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "sound"


def read_champions(client: mlflow.MlflowClient) -> tuple[str, ...]:
    """The champions, oldest first, the current one last; empty: none."""
    try:
        model = client.get_registered_model(NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ()
    alias = model.aliases.get(CHAMPION)
    return up_to_alias(alias and str(alias), tuple(json.loads(model.tags.get(CHAMPIONS, "[]"))))


def up_to_alias(alias: str | None, champions: tuple[str, ...]) -> tuple[str, ...]:
    """The champions up to the one that the alias names, also if a user set the alias by hand.

    up_to_alias("2", ("1", "2", "3")) -> ("1", "2");  up_to_alias("9", ("1",)) -> ("1", "9");
    up_to_alias(None, ("1",)) -> ()
    """
    if alias is None:
        return ()
    if alias not in champions:
        return (*champions, alias)
    return champions[: len(champions) - champions[::-1].index(alias)]


def add_champion(client: mlflow.MlflowClient, turn: str, champions: tuple[str, ...], version: str) -> None:
    """Make `version` the champion after `champions`. Killed before the alias moves, it has changed nothing."""
    _check_turn(client, turn)
    client.set_registered_model_tag(NAME, CHAMPIONS, json.dumps([*champions, version]))
    failpoint("champions-tagged")
    move_alias(client, CHAMPION, version)


def remove_champion(client: mlflow.MlflowClient, turn: str, champions: tuple[str, ...]) -> None:
    """Make the last but one of `champions` the champion. Killed after the alias moved, it has done so."""
    _check_turn(client, turn)
    client.set_registered_model_tag(NAME, CHAMPIONS, json.dumps(champions))
    failpoint("champions-tagged")
    move_alias(client, CHAMPION, champions[-2])
    failpoint("champion-moved")
    client.set_registered_model_tag(NAME, CHAMPIONS, json.dumps(champions[:-1]))


@contextlib.contextmanager
def turn_to_move(client: mlflow.MlflowClient, version: str) -> Iterator[str]:
    """Wait until no other process moves the champion; `version` is any that exists."""
    with contextlib.suppress(MlflowException):  # it exists already; if not, the next call says why
        client.create_registered_model(TURNS, description=LOCK)
    created = client.create_model_version(TURNS, f"models:/{NAME}/{version}", await_creation_for=0)
    turn, holder, since = number_of(created), "", 0.0
    try:
        while (first := _check_turn(client, turn)) != turn:
            if first != holder:
                holder, since = first, time.monotonic()
            elif time.monotonic() - since > TURN_SECONDS:
                _end(client, holder)
            time.sleep(PAUSE_SECONDS)
        yield turn
    finally:
        _end(client, turn)


def _check_turn(client: mlflow.MlflowClient, turn: str) -> str:
    """The turn that is due. Raises UserError if `turn` was ended."""
    turns = [number_of(version) for version in newest_first(client, TURNS)]
    if turn not in turns:
        raise UserError(
            f"the registry took more than {TURN_SECONDS} seconds to answer, and another command had its turn; "
            "the champion was not changed. Run the command again"
        )
    return turns[-1]


def _end(client: mlflow.MlflowClient, turn: str) -> None:
    with contextlib.suppress(MlflowException):  # another process has ended it
        client.delete_model_version(TURNS, turn)
