"""The champion: concurrent promotions and rollbacks never mix, and one that dies half-way has moved or has not.

Number of trials of the slow tests: THOUSANDWORDS_MOVES.
"""

import os
import random
import re
import threading
from collections import Counter

import pytest

from flows.registry import commands as registry
from flows.registry import versions as moves
from flows.registry.versions import NAME, read_champions, turn_to_move
from tests.helpers.registered_models import champion, check_champions, client, register_with
from thousandwords.core.errors import UserError


def meanwhile(monkeypatch, others) -> None:
    """Call `others` once, just before the next command waits for its turn."""
    function, due = registry.turn_to_move, [others]

    def late(*args):
        if due:
            due.pop()()
        return function(*args)

    monkeypatch.setattr(registry, "turn_to_move", late)


def test_a_champion_that_a_user_set_by_hand_is_rolled_back_to_the_one_before_it(project):
    assert register_with(project, 2, 30.0) == "3"
    client().set_registered_model_alias(NAME, "champion", "3")
    assert registry.rollback(project) == "2"


def test_an_alias_that_a_user_moved_back_by_hand_is_respected(project):
    client().set_registered_model_alias(NAME, "champion", "1")
    message = "^no version was champion before version 1: there is nothing to roll back to$"
    with pytest.raises(UserError, match=message):
        registry.rollback(project)
    assert registry.promote(project, "2") == champion() == "2"
    assert registry.rollback(project) == "1"


def test_without_an_alias_there_is_no_champion_to_compare_with(project):
    client().delete_registered_model_alias(NAME, "champion")
    message = "there is no champion, so there is nothing to roll back. Run: make promote"
    with pytest.raises(UserError, match=message):
        registry.rollback(project)
    assert registry.promote(project, "2") == champion() == "2"


REPLACED = (
    "version 2 has just been replaced as champion by another command, so it was not rolled back. "
    "Look with: python -m flows.registry show"
)


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (lambda project: registry.promote(project, "4"), "version 4 was not promoted against champion 3:"),
        (lambda project: registry.promote(project, "3"), "3"),
        (registry.rollback, REPLACED),
    ],
)
def test_a_command_overtaken_by_a_promotion_is_based_on_the_new_champion(
    project, monkeypatch, command, result
):
    assert (register_with(project, 2, 31.0), register_with(project, 3, 30.0)) == ("3", "4")
    meanwhile(monkeypatch, lambda: registry.promote(project, "3"))
    try:
        outcome = command(project)
    except UserError as error:
        outcome = str(error)
    assert outcome.startswith(result) and check_champions() == ("1", "2", "3")


def test_two_rollbacks_at_once_go_back_once(project, monkeypatch):
    registry.promote(project, "1")
    meanwhile(monkeypatch, lambda: registry.rollback(project))
    assert registry.rollback(project) == champion() == "2"


def test_a_command_waits_for_its_turn(project):
    rolling_back = threading.Thread(target=registry.rollback, args=(project,))
    with turn_to_move(client(), "1"):
        rolling_back.start()
        rolling_back.join(1)
        assert rolling_back.is_alive() and champion() == "2"
    rolling_back.join()
    assert champion() == "1"


def test_a_turn_whose_process_hangs_ends_and_moves_nothing_later(project, monkeypatch):
    monkeypatch.setattr(moves, "TURN_SECONDS", 0.2)
    with turn_to_move(client(), "1") as turn:
        assert registry.rollback(project) == "1"
        with pytest.raises(UserError, match="another command had its turn; the champion was not changed"):
            moves.add_champion(client(), turn, ("1",), "2")
    assert champion() == "1"


@pytest.mark.parametrize(
    ("do", "failpoint", "champions"),
    [
        ("promote", "champions-tagged:1", ("1", "2", "1")),
        ("rollback", "champions-tagged:1", ("1", "2", "1")),
        ("rollback", "champion-moved:1", ("1", "2")),
    ],
)
def test_a_killed_command_has_moved_the_champion_or_has_not(
    project, registry_process, monkeypatch, do, failpoint, champions
):
    registry.promote(project, "1")
    register_with(project, 2, 30.0)
    assert registry_process.run(do, folder=str(project), failpoint=failpoint).code == -9
    assert read_champions(client()) == champions
    monkeypatch.setattr(moves, "TURN_SECONDS", 0.2)
    assert registry.promote(project, "3") == champion() == "3"
    assert check_champions() == (*champions, "3")


ROUNDS = int(os.environ.get("THOUSANDWORDS_MOVES", "100"))
REASONS = (
    r"PromotionRejected: version \d+ was not promoted|"
    r"UserError: version \d+ has just been replaced as champion|"
    r"UserError: no version was champion before"
)


def move_at_once(project, registry_process, rounds: int, killed_share: float = 0) -> list[int]:
    """The exit codes of commands in rounds of four at once, after a check of all errors and champions."""
    for number, psnr in enumerate((30.2, 30.0, 29.8, 29.6)):
        register_with(project, 2 + number, psnr)
    rng, answers = random.Random(0), []
    for _ in range(rounds):
        answers += registry_process.run_all([random_order(rng, project, killed_share) for _ in range(4)])
        check_champions()
    errors = [answer.result for answer in answers if answer.code == 1]
    assert [error for error in errors if not re.match(REASONS, error)] == []
    return [answer.code for answer in answers]


def random_order(rng: random.Random, project, killed_share: float) -> dict:
    name, args = ("promote", [rng.choice("123456")]) if rng.random() < 0.7 else ("rollback", [])
    after = rng.uniform(0, 0.5) if rng.random() < killed_share else None
    return {"name": name, "args": args, "folder": str(project), "signal_after": after}


def test_promotions_and_rollbacks_of_several_processes_leave_one_history(project, registry_process):
    codes = move_at_once(project, registry_process, rounds=3)
    assert set(codes) <= {0, 1} and codes.count(0) >= 3


@pytest.mark.slow
def test_many_promotions_and_rollbacks_of_many_processes_some_of_them_killed(project, registry_process):
    print(Counter(move_at_once(project, registry_process, ROUNDS, killed_share=0.3)))
