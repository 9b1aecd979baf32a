"""The champion: an alias, and a tag of the registered model with the champions so far.

Promotions and rollbacks take turns. A turn is a version of a second registered model, `thousandwords-moves`: the
next version number is the one thing in MLflow that two clients cannot both get. The lowest open number has the
turn. No lock file, which other machines do not see, and no limit of Prefect, whose server a registry can lack.

Wherever a process dies, the champions are those before its move or those after it. An alias that a user set by
hand is respected: the next move is based on it.
"""

import contextlib
import json
import time
from collections.abc import Iterator

import mlflow
from mlflow.exceptions import MlflowException

from flows.registry.versions import CHAMPION, NAME, move_alias, newest_first, number_of
from thousandwords.core.errors import UserError
from thousandwords.core.files import failpoint

TURNS = f"{NAME}-moves"
CHAMPIONS = "champions"  # tag of the registered model: oldest first
TURN_SECONDS = 30  # after which the turn of a process that died, or hangs, is over
PAUSE_SECONDS = 0.1


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
        client.create_registered_model(TURNS, description=f"Who may move the champion of {NAME}")
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
