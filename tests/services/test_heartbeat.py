"""The watch over dead runs: what counts as silence, and what it does to a run on a real Prefect server."""
from __future__ import annotations

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import watch
from flows.watch import Heard, Sign
from tests.orchestra import Server, run, tiny_project, wait_for

OLD, NEW = Sign("RUNNING", "x", 1), Sign("RUNNING", "x", 2)


def test_silence_is_counted_from_the_last_sign_of_life():
    assert watch.listen({}, {"a": OLD}, passed=3) == {"a": Heard(OLD)}
    assert watch.listen({"a": Heard(OLD, 5)}, {"a": OLD}, passed=3) == {"a": Heard(OLD, 8)}
    assert watch.listen({"a": Heard(OLD, 5)}, {"a": NEW}, passed=3) == {"a": Heard(NEW)}
    assert watch.listen({"a": Heard(OLD, 5)}, {}, passed=3) == {}


def test_three_heartbeats_may_stay_away_and_one_that_is_a_minute_late_is_no_death():
    assert watch.dead({"a": Heard(OLD, 99), "b": Heard(OLD, 100)}) == ["b"] and watch.SILENCE > 30 + 60


def test_whether_the_server_can_write_is_tried_only_for_a_run_that_misses_a_heartbeat():
    assert watch.suspects({"a": Heard(OLD, 39), "b": Heard(OLD, 40)}) == ["b"] and watch.HEAD_START > 30 + watch.PERIOD + 5


def test_time_in_which_the_watch_itself_was_stopped_does_not_count():
    assert [watch.counted(seconds) for seconds in (0, 3, 6, 7, 3600)] == [0, 3, 6, 6, 6]


def test_after_a_failure_of_the_server_two_more_heartbeats_are_waited_for():
    assert watch.calmed({"a": Heard(OLD, 99), "b": Heard(OLD, 5)}) == {"a": Heard(OLD, 40), "b": Heard(OLD, 5)}


@pytest.mark.parametrize(("received", "seconds"), [("11:59:30", 30.0), ("11:00:00", 3600.0), ("12:30:00", 0.0), (None, 0.0)])
def test_silence_before_the_watch_came_is_told_by_the_servers_clock_alone(received, seconds):
    events = [{"received": f"2026-11-22T{received}.000000Z", "occurred": "2001-01-01T00:00:00Z"}] if received else []
    answer = httpx.Response(200, json={"events": events}, headers={"date": "Sun, 22 Nov 2026 12:00:00 GMT"})
    assert watch.silence(answer) == seconds


@pytest.fixture
def client(server):
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:
        yield client


def begun_run(server: Server, kind: str = "RUNNING") -> str:
    flow = server.ask("flows/", {"name": "watched"})["id"]
    made = server.ask("flow_runs/", {"flow_id": flow, "state": {"type": "PENDING"}})["id"]
    server.ask(f"flow_runs/{made}/set_state", {"state": {"type": "RUNNING"}})
    if kind != "RUNNING":
        server.ask(f"flow_runs/{made}/set_state", {"state": {"type": kind}})
    return made


def test_a_heartbeat_is_a_sign_of_life_whatever_its_clock_says(server, client):
    one = begun_run(server)
    wait_for(lambda: watch.look(client)[one].events >= 2, 30, "its states are not known as events")
    for year in (2001, 2101):
        before = watch.look(client)[one]
        beat = Event(event="prefect.flow-run.heartbeat", resource={"prefect.resource.id": f"prefect.flow-run.{one}"},
                     occurred=f"{year}-01-01T00:00:00Z")  # fmt: skip
        client.request("POST", "/events", json=[beat.model_dump(mode="json")])
        wait_for(lambda before=before: watch.look(client)[one] != before, 30, f"a heartbeat of {year} is not heard")


def test_a_silent_run_is_crashed_one_that_somebody_cancels_is_cancelled_and_one_that_has_ended_stays(server, client):
    runs = {kind: begun_run(server, kind) for kind in ("RUNNING", "CANCELLING", "COMPLETED")}
    assert set(watch.look(client)) & set(runs.values()) == {runs["RUNNING"], runs["CANCELLING"]}

    for kind, one in runs.items():
        watch.end(client, one, kind)

    assert [server.run(one)["state_type"] for one in runs.values()] == ["CRASHED", "CANCELLED", "COMPLETED"]
    assert server.run(runs["RUNNING"])["state"]["message"].startswith("Nothing was heard of it for 100 s")
    assert not set(watch.look(client)) & set(runs.values())


def test_a_new_watch_takes_over_some_silence_but_never_enough_to_judge(server, client, monkeypatch):
    one = begun_run(server)
    wait_for(lambda: watch.look(client)[one].events >= 2, 30)
    assert 0 <= watch.begin(client)[one].silent < 40
    monkeypatch.setattr(watch, "silence", lambda answer: 3600.0)
    assert watch.begin(client)[one].silent == 40 and watch.dead(watch.begin(client)) == []


def test_without_a_server_the_watch_says_what_is_missing(tmp_path):
    done = run(tiny_project(tmp_path, {}), "flows.watch", PREFECT_API_URL="")
    assert done.returncode == 1 and "watch: PREFECT_API_URL is not set" in done.stderr
