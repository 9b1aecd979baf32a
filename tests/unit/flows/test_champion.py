"""Who is champion: promotions and rollbacks at once, from anywhere, never mix, and one that dies half-way is brought to its end.

N of what is marked slow: THOUSANDWORDS_MOVES.
"""
from __future__ import annotations

import os
import random
import time

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from flows import _champions, registry
from flows._champions import Standing
from flows.registry import Refused
from tests.registered import NAME, champion, check_moves, client, register_with
from thousandwords.errors import UserError


def meanwhile(monkeypatch, module, name: str, others) -> None:
    """`others` happens, once, just before the next call of that function."""
    function, due = getattr(module, name), [others]

    def late(*words, **named):
        if due:
            due.pop()()
        return function(*words, **named)

    monkeypatch.setattr(module, name, late)


def test_the_log_of_moves_lists_every_champion_in_order(project):
    registry.promote(project, "1")
    registry.rollback(project)
    assert check_moves() == [["1"], ["1", "2"], ["1", "2", "1"], ["1", "2"]]
    assert _champions.standing(client()) == Standing(last="4", champions=("1", "2"))


def test_a_champion_that_somebody_set_by_hand_is_rolled_back_to_the_one_before_it(project):
    assert register_with(project, 2, 30.0) == "3"
    client().set_registered_model_alias(NAME, "champion", "3")
    assert registry.rollback(project) == "2"


def test_an_alias_that_somebody_moved_back_by_hand_stands(project):
    client().set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(UserError, match="no version was champion before version 1"):
        registry.rollback(project)
    assert registry.promote(project, "2") == champion() == "2"
    assert registry.rollback(project) == "1"


def test_without_an_alias_there_is_no_champion_to_compare_with(project):
    client().delete_registered_model_alias(NAME, "champion")
    with pytest.raises(UserError, match="there is no champion, so there is nothing to roll back. Run: make promote"):
        registry.rollback(project)
    assert registry.promote(project, "2") == champion() == "2"


# --- two at once, moment by moment -----------------------------------------------------------------------------------


def test_a_promotion_that_another_one_overtakes_is_judged_beside_the_new_champion(project, monkeypatch):
    assert (register_with(project, 2, 31.0), register_with(project, 3, 30.0)) == ("3", "4")
    meanwhile(monkeypatch, registry, "crown", lambda: registry.promote(project, "3"))
    with pytest.raises(Refused, match="version 4 was not promoted beside champion 3:"):
        registry.promote(project, "4")
    assert champion() == "3" and check_moves() == [["1"], ["1", "2"], ["1", "2", "3"]]


def test_a_promotion_that_another_one_overtakes_follows_it_where_the_gate_lets_it(project, monkeypatch):
    assert (register_with(project, 2, 30.0), register_with(project, 3, 30.0)) == ("3", "4")
    meanwhile(monkeypatch, registry, "crown", lambda: registry.promote(project, "3"))
    assert registry.promote(project, "4") == champion() == "4"
    assert check_moves()[-1] == ["1", "2", "3", "4"]


def test_the_same_promotion_twice_at_once_is_one(project, monkeypatch):
    register_with(project, 2, 30.0)
    meanwhile(monkeypatch, registry, "crown", lambda: registry.promote(project, "3"))
    assert registry.promote(project, "3") == champion() == "3"
    assert check_moves()[-1] == ["1", "2", "3"]


def test_a_rollback_that_a_promotion_overtakes_changes_nothing_and_says_so(project, monkeypatch):
    register_with(project, 2, 30.0)
    meanwhile(monkeypatch, registry, "crown", lambda: registry.promote(project, "3"))
    with pytest.raises(UserError) as caught:
        registry.rollback(project)
    assert str(caught.value) == (
        "somebody else has just moved the champion away from version 2, so it was not rolled back. "
        "Look with: python -m flows.registry show"
    )
    assert champion() == "3" and check_moves()[-1] == ["1", "2", "3"]


def test_two_rollbacks_at_once_go_back_once(project, monkeypatch):
    registry.promote(project, "1")
    meanwhile(monkeypatch, registry, "crown", lambda: registry.rollback(project))
    assert registry.rollback(project) == champion() == "2"


def test_an_alias_that_is_moved_late_ends_at_the_last_champion(project, monkeypatch):
    assert (register_with(project, 2, 30.0), register_with(project, 3, 30.0)) == ("3", "4")
    meanwhile(monkeypatch, _champions, "move", lambda: registry.promote(project, "4"))
    assert registry.promote(project, "3") == "3"
    assert champion() == "4" and check_moves()[-1] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("asked", ["set_registered_model_alias", "set_model_version_tag"])
def test_what_two_make_at_once_in_mlflow_does_not_stop_the_second(project, monkeypatch, asked):
    """MLflow looks whether a row is there, then makes it; of two at once it refuses one."""
    register_with(project, 2, 30.0)

    def refuse():
        raise MlflowException("UNIQUE constraint failed")

    meanwhile(monkeypatch, mlflow.MlflowClient, asked, refuse)
    assert registry.promote(project, "3") == champion() == "3"
    assert registry.promote(project, "1") == champion() == "1" and check_moves()[-1] == ["1", "2", "3", "1"]


# --- one that dies ---------------------------------------------------------------------------------------------------


def test_a_promotion_killed_before_the_alias_moved_is_brought_to_its_end_by_the_next_command(project, nursery):
    register_with(project, 2, 30.0)
    assert nursery.run(project, failpoint="champion-logged:1", do="promote")[0] == -9
    assert champion() == "2"
    assert _champions.standing(client()).champions == ("1", "2", "3") and champion() == "3"


def test_a_rollback_killed_before_the_alias_moved_is_brought_to_its_end_and_no_further(project, nursery):
    assert nursery.run(project, failpoint="champion-logged:1", do="rollback")[0] == -9
    assert champion() == "2"
    with pytest.raises(UserError, match="no version was champion before version 1"):
        registry.rollback(project)
    assert champion() == "1"


# --- many at once, in processes --------------------------------------------------------------------------------------


TOLD = ("Refused: version ", "UserError: somebody else has just moved", "UserError: no version was champion before")


def move_at_once(project, nursery, rounds: int, width: int, killed_share: float = 0) -> tuple[int, int, int]:
    """(commands that did what they were told, that were told why not, that were killed) of rounds of several at once."""
    for number, psnr in enumerate((30.2, 30.0, 29.8, 29.6)):
        register_with(project, 2 + number, psnr)
    rng, answers = random.Random(0), []
    for _ in range(rounds):
        answers += nursery.together([order_of(rng, project, killed_share) for _ in range(width)])
        _champions.standing(client())
        check_moves()
    told = [words for code, _, words in answers if code == 1]
    assert [words for words in told if not words.startswith(TOLD)] == []
    return sum(code == 0 for code, *_ in answers), len(told), sum(code == -9 for code, *_ in answers)


def order_of(rng: random.Random, project, killed_share: float) -> dict:
    what = {"do": "promote", "words": [rng.choice("123456")]} if rng.random() < 0.7 else {"do": "rollback"}
    after = rng.uniform(0, 0.5) if rng.random() < killed_share else None
    return {**what, "folder": str(project), "after": after}


def test_promotions_and_rollbacks_of_several_processes_leave_one_history(project, nursery):
    done, refused, _ = move_at_once(project, nursery, rounds=3, width=4)
    assert done + refused == 12 and done >= 3


@pytest.mark.slow
def test_many_promotions_and_rollbacks_of_many_processes(project, nursery):
    rounds, began = int(os.environ.get("THOUSANDWORDS_MOVES", "100")), time.monotonic()
    done, refused, killed = move_at_once(project, nursery, rounds, width=4, killed_share=0.3)
    print(f"{4 * rounds} promotions and rollbacks, four at once: {done} done, {refused} told why not, {killed} killed; "
          f"{len(check_moves())} moves, all by the gate, one history; {time.monotonic() - began:.0f} s")  # fmt: skip
