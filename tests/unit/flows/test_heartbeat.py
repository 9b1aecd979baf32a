"""The heartbeat process: what counts as silence."""

import httpx
import pytest

from flows.workers import heartbeat
from flows.workers.heartbeat import Run

OLD, NEW = ("RUNNING", "x", 1), ("RUNNING", "x", 2)


@pytest.mark.parametrize(
    ("before", "now", "passed", "expected"),
    [
        ({}, {"a": Run(OLD)}, 3, {"a": Run(OLD)}),
        ({"a": Run(OLD, 5)}, {"a": Run(OLD)}, 3, {"a": Run(OLD, 8)}),
        ({"a": Run(OLD, 5)}, {"a": Run(NEW)}, 3, {"a": Run(NEW)}),
        ({"a": Run(OLD, 5)}, {}, 3, {}),
        ({"a": Run(OLD, 5)}, {"a": Run(OLD)}, 3600, {"a": Run(OLD, 11)}),  # the process itself was paused
    ],
)
def test_silence_is_counted_from_the_last_life_sign(before, now, passed, expected):
    assert heartbeat.update(before, now, passed) == expected


def test_a_run_is_dead_after_three_missed_heartbeats_and_not_if_one_is_a_minute_late():
    runs = {"a": Run(OLD, 99), "b": Run(OLD, 100)}
    assert heartbeat.silent_for(heartbeat.SILENCE, runs) == ["b"] and heartbeat.SILENCE > 30 + 60


def test_after_a_failure_of_the_server_two_more_heartbeats_are_awaited():
    runs = {"a": Run(OLD, 99), "b": Run(OLD, 5)}
    assert heartbeat.after_server_failure(runs) == {"a": Run(OLD, 40), "b": Run(OLD, 5)}
    assert heartbeat.HEAD_START > 30 + heartbeat.PERIOD + 5  # the write test is for a missed one only


@pytest.mark.parametrize(
    ("received", "seconds"), [("11:59:30", 30.0), ("11:00:00", 3600.0), ("12:30:00", 0.0), (None, 0.0)]
)
def test_earlier_silence_is_measured_by_the_servers_clock_alone(received, seconds):
    event = {"received": f"2026-11-22T{received}.000000Z", "occurred": "2001-01-01T00:00:00Z"}
    events = {"events": [event] if received else []}
    answer = httpx.Response(200, json=events, headers={"date": "Sun, 22 Nov 2026 12:00:00 GMT"})
    assert heartbeat.seconds_since_event(answer) == seconds
