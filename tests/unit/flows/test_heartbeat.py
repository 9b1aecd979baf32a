"""The heartbeat process: what counts as silence."""

from __future__ import annotations

import httpx
import pytest

from flows.workers import heartbeat
from flows.workers.heartbeat import LifeSign, Observation

OLD, NEW = LifeSign("RUNNING", "x", 1), LifeSign("RUNNING", "x", 2)


def test_silence_is_counted_from_the_last_life_sign():
    assert heartbeat.update({}, {"a": OLD}, passed=3) == {"a": Observation(OLD)}
    assert heartbeat.update({"a": Observation(OLD, 5)}, {"a": OLD}, passed=3) == {"a": Observation(OLD, 8)}
    assert heartbeat.update({"a": Observation(OLD, 5)}, {"a": NEW}, passed=3) == {"a": Observation(NEW)}
    assert heartbeat.update({"a": Observation(OLD, 5)}, {}, passed=3) == {}


def test_a_run_is_dead_after_three_missed_heartbeats_and_not_if_one_is_a_minute_late():
    observations = {"a": Observation(OLD, 99), "b": Observation(OLD, 100)}
    assert heartbeat.dead_runs(observations) == ["b"] and heartbeat.SILENCE > 30 + 60


def test_the_write_test_of_the_server_runs_only_for_a_run_that_misses_a_heartbeat():
    observations = {"a": Observation(OLD, 39), "b": Observation(OLD, 40)}
    assert heartbeat.suspected_runs(observations) == ["b"]
    assert heartbeat.HEAD_START > 30 + heartbeat.PERIOD + 5


def test_time_in_which_the_heartbeat_process_itself_was_paused_does_not_count():
    assert [heartbeat.counted(seconds) for seconds in (0, 3, 6, 7, 3600)] == [0, 3, 6, 6, 6]


def test_after_a_failure_of_the_server_two_more_heartbeats_are_awaited():
    assert heartbeat.after_server_failure({"a": Observation(OLD, 99), "b": Observation(OLD, 5)}) == {
        "a": Observation(OLD, 40),
        "b": Observation(OLD, 5),
    }


@pytest.mark.parametrize(
    ("received", "seconds"), [("11:59:30", 30.0), ("11:00:00", 3600.0), ("12:30:00", 0.0), (None, 0.0)]
)
def test_earlier_silence_is_measured_by_the_servers_clock_alone(received, seconds):
    events = (
        [{"received": f"2026-11-22T{received}.000000Z", "occurred": "2001-01-01T00:00:00Z"}]
        if received
        else []
    )
    answer = httpx.Response(200, json={"events": events}, headers={"date": "Sun, 22 Nov 2026 12:00:00 GMT"})
    assert heartbeat.seconds_since_event(answer) == seconds
