"""The heartbeat process on a real Prefect server: which runs it marks as dead.

What counts as silence: tests/unit/flows.
"""

import pytest
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.workers import heartbeat
from tests.helpers.prefect_server import wait_for


@pytest.fixture
def client(server):
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def create_run(server):
    """A function that creates a run on the server; the runs are completed after the test, since others share the server."""
    run_ids = []

    def create(kind: str = "RUNNING") -> str:
        flow = server.ask("flows/", {"name": "watched"})["id"]
        run_id = server.ask("flow_runs/", {"flow_id": flow, "state": {"type": "PENDING"}})["id"]
        run_ids.append(run_id)
        server.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": "RUNNING"}})
        if kind != "RUNNING":
            server.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": kind}})
        return run_id

    yield create
    for run_id in run_ids:
        server.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": "COMPLETED"}, "force": True})


def test_a_heartbeat_is_a_life_sign_whatever_its_clock_says(client, create_run):
    run_id = create_run()

    def now() -> heartbeat.Run:
        return heartbeat.read_runs(client)[run_id]

    wait_for(lambda: now().sign[2] >= 2, 30, "its states are not there as events")
    for year in (2001, 2101):
        before, resource = now(), {"prefect.resource.id": f"prefect.flow-run.{run_id}"}
        event = Event(
            event="prefect.flow-run.heartbeat", resource=resource, occurred=f"{year}-01-01T00:00:00Z"
        )
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
        wait_for(lambda before=before: now() != before, 30, f"a heartbeat of {year} does not arrive")


def test_a_silent_run_is_crashed_a_cancelling_one_is_cancelled_and_a_finished_one_stays(
    server, client, create_run
):
    runs = {kind: create_run(kind) for kind in ("RUNNING", "CANCELLING", "COMPLETED")}
    assert set(heartbeat.read_runs(client)) & set(runs.values()) == {runs["RUNNING"], runs["CANCELLING"]}

    for kind, run_id in runs.items():
        heartbeat.mark_dead(client, run_id, kind)

    states = [server.run(run_id)["state_type"] for run_id in runs.values()]
    assert states == ["CRASHED", "CANCELLED", "COMPLETED"]
    assert server.run(runs["RUNNING"])["state"]["message"].startswith("No heartbeat for 100 s")
    assert not set(heartbeat.read_runs(client)) & set(runs.values())


def test_a_new_heartbeat_process_takes_over_some_silence_but_never_enough_for_death(
    client, create_run, monkeypatch
):
    run_id = create_run()
    wait_for(lambda: heartbeat.read_runs(client)[run_id].sign[2] >= 2, 30)
    assert 0 <= heartbeat.read_runs(client, is_first=True)[run_id].silent < 40
    monkeypatch.setattr(heartbeat, "seconds_since_event", lambda answer: 3600.0)
    runs = heartbeat.read_runs(client, is_first=True)
    assert runs[run_id].silent == 40 and heartbeat.silent_for(heartbeat.SILENCE, runs) == []
