"""The champions in an append-only log, so that concurrent promotions and rollbacks never mix.

Each move is a version of a second registered model, `thousandwords-champions`: the next version number of a
model is the one thing in MLflow that two writers cannot both get. A move names the move it was based on, and
is valid only if no other valid move came in between; so of several concurrent moves the first is valid, and
the others change nothing and are reported. The alias follows the log.

In every order of events, and wherever a process dies: each valid move was based on the champion before it,
and the log lists all of them. The alias names the champion of the last move or, if a process died in between,
of the move before, until the next promotion or rollback corrects it. An alias that a user set by hand is
respected: the next move is based on it. (A process that moves the alias late, after other moves, corrects it
at once; if it dies in just that instant, a former champion stays, as if set by hand.)
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from flows.registry.versions import CHAMPION, NAME, move_alias, newest_first, number_of, resolve
from thousandwords.core.errors import UserError
from thousandwords.core.files import failpoint

LOG = f"{NAME}-champions"
AFTER = "after"  # tag: the move that this one was based on
CHAMPIONS = "champions"  # tag: the champions so far, oldest first; the last is the one that this move set
FOLLOWED = "followed"  # tag: the alias has been moved, too


@dataclass(frozen=True)
class ChampionState:
    """The champions at the moment of reading, on which the next move is based."""

    last_move: str  # number of the last move; "0": none
    champions: tuple[str, ...]  # oldest first, the current one last; empty: none


def read_state(client: mlflow.MlflowClient) -> ChampionState:
    """Read the champions. If a process died before it moved the alias, that move is completed first."""
    last = next(iter(reversed(_valid_moves(client))), None)
    if last and FOLLOWED not in last.tags:
        last = _move_champion_alias(client, last)
    champions = _champions(last) if last else ()
    return ChampionState(number_of(last) if last else "0", _up_to_alias(_read_alias(client), champions))


def set_champion(client: mlflow.MlflowClient, state: ChampionState, champions: tuple[str, ...]) -> bool:
    """Make the last of `champions` the champion.

    False, with nothing changed, if another move came in between.
    """
    if state.last_move == "0":
        with contextlib.suppress(MlflowException):  # it exists already; if not, the next call says why
            client.create_registered_model(
                LOG, description=f"Champions of {NAME}: one version per move, never changed"
            )
    created = client.create_model_version(
        LOG,
        f"models:/{NAME}/{champions[-1]}",
        tags={AFTER: state.last_move, CHAMPIONS: json.dumps(champions)},
        description=f"version {champions[-1]} is champion",
        await_creation_for=0,
    )
    failpoint("champion-logged")
    moves = _valid_moves(client)
    if number_of(created) not in map(number_of, moves):
        return False
    _move_champion_alias(client, moves[-1])
    return True


def _valid_moves(client: mlflow.MlflowClient) -> list[ModelVersion]:
    """The valid moves, oldest first."""
    moves, last = [], "0"
    for move in reversed(newest_first(client, LOG)):
        if move.tags.get(AFTER) == last:
            moves.append(move)
            last = number_of(move)
    return moves


def _move_champion_alias(client: mlflow.MlflowClient, last: ModelVersion) -> ModelVersion:
    """Point the alias at the champion of the last move.

    Returns that move, which may be later than the given one.
    """
    while True:
        move_alias(client, CHAMPION, _champions(last)[-1])
        newest = _valid_moves(client)[-1]
        if number_of(newest) == number_of(last):  # else the alias of a later move was overwritten
            # two processes may set the tag at once; without it the alias is only moved once more
            with contextlib.suppress(MlflowException):
                client.set_model_version_tag(LOG, number_of(last), FOLLOWED, "true")
            return newest
        last = newest


def _champions(move: ModelVersion) -> tuple[str, ...]:
    return tuple(json.loads(move.tags[CHAMPIONS]))


def _read_alias(client: mlflow.MlflowClient) -> str | None:
    try:
        return number_of(resolve(client, CHAMPION))
    except UserError:
        return None


def _up_to_alias(alias: str | None, champions: tuple[str, ...]) -> tuple[str, ...]:
    """The champions up to the one that the alias names, also if a user set the alias by hand.

    _up_to_alias("2", ("1", "2", "3")) -> ("1", "2");  _up_to_alias("9", ("1",)) -> ("1", "9");
    _up_to_alias(None, ("1",)) -> ()
    """
    if alias is None:
        return ()
    if alias not in champions:
        return (*champions, alias)
    return champions[: len(champions) - champions[::-1].index(alias)]
