"""Who is champion, and who was before it: by a log that only grows, so that promotions and rollbacks from anywhere never mix.

Each move is a version of a second registered model, `thousandwords-champions`: the one thing in MLflow that two writers cannot
both have is the next number of a model. A move says which move it was decided on, and counts only if no other that counts came in
between; so of several decided at once the first counts, and the others change nothing and are told. The alias follows the log.

Whatever interleaves, and wherever a process dies: each move that counts was decided on the champion before it, and the log lists
them all. The alias names the last of them, or, where a process died in between, the one before, until the next promotion or
rollback brings it up. An alias that somebody set by hand stands: the next move is decided on it. (A process that moves the alias
late, after others have moved on, moves it up at once; if it dies in just that instant, a former champion stays, as if by hand.)
"""
from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from flows._versions import CHAMPION, NAME, move, newest_first, number_of, resolve
from thousandwords.errors import UserError
from thousandwords.files import failpoint

LOG = f"{NAME}-champions"
AFTER = "after"  # the move that this one was decided on
CHAMPIONS = "champions"  # the versions that were champion, oldest first, the one that this move made champion last
FOLLOWED = "followed"  # the alias has been moved, too


@dataclass(frozen=True)
class Standing:
    """Who is champion, as one who is about to change it has seen it."""

    last: str  # the number of the last move; "0": there is none
    champions: tuple[str, ...]  # oldest first, the one in use last; empty: there is none


def standing(client: mlflow.MlflowClient) -> Standing:
    """Who is champion. A move whose process died before the alias followed is brought to its end first."""
    last = next(iter(reversed(_moves(client))), None)
    if last and FOLLOWED not in last.tags:
        last = _follow(client, last)
    return Standing(number_of(last) if last else "0", _up_to(_alias(client), _champions(last) if last else ()))


def crown(client: mlflow.MlflowClient, seen: Standing, champions: tuple[str, ...]) -> bool:
    """Makes the last of `champions` the champion; False, and nothing has changed, where another move came in between."""
    if seen.last == "0":
        with contextlib.suppress(MlflowException):  # it is there already; if not, the next call says why
            client.create_registered_model(LOG, description=f"Who was champion of {NAME}: a version a move, never changed")
    made = client.create_model_version(
        LOG, f"models:/{NAME}/{champions[-1]}", tags={AFTER: seen.last, CHAMPIONS: json.dumps(champions)},
        description=f"version {champions[-1]} is champion", await_creation_for=0,
    )  # fmt: skip
    failpoint("champion-logged")
    counting = _moves(client)
    if number_of(made) not in map(number_of, counting):
        return False
    _follow(client, counting[-1])
    return True


def _moves(client: mlflow.MlflowClient) -> list[ModelVersion]:
    """The moves that count, oldest first."""
    counting, last = [], "0"
    for one in reversed(newest_first(client, LOG)):
        if one.tags.get(AFTER) == last:
            counting.append(one)
            last = number_of(one)
    return counting


def _follow(client: mlflow.MlflowClient, last: ModelVersion) -> ModelVersion:
    """Moves the alias to where the last move wants it; returns that move, which may be a later one than was given."""
    while True:
        move(client, CHAMPION, _champions(last)[-1])
        newest = _moves(client)[-1]
        if number_of(newest) == number_of(last):  # else the alias was moved over that of a later one
            with contextlib.suppress(MlflowException):  # two say so at once; and without it the alias is but moved once more
                client.set_model_version_tag(LOG, number_of(last), FOLLOWED, "true")
            return newest
        last = newest


def _champions(one: ModelVersion) -> tuple[str, ...]:
    return tuple(json.loads(one.tags[CHAMPIONS]))


def _alias(client: mlflow.MlflowClient) -> str | None:
    try:
        return number_of(resolve(client, CHAMPION))
    except UserError:
        return None


def _up_to(alias: str | None, champions: tuple[str, ...]) -> tuple[str, ...]:
    """The champions with the one that the alias names as the last, where somebody set it by hand, too.

    _up_to("2", ("1", "2", "3")) -> ("1", "2");  _up_to("9", ("1",)) -> ("1", "9");  _up_to(None, ("1",)) -> ()
    """
    if alias is None:
        return ()
    if alias not in champions:
        return (*champions, alias)
    return champions[: len(champions) - champions[::-1].index(alias)]
