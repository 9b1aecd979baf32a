"""python -m flows.workers.heartbeat: marks runs as crashed that sent no heartbeat for `SILENCE` seconds.

`make workers` starts it. Prefect's automations compare the clocks of two machines, and go on counting while their
server is down. This process counts its own seconds, and waits longer after the server failed to answer or to write.
Several may run side by side; if none runs, an automation ends such runs after two hours.
"""

import sys
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed
from prefect.variables import Variable

from flows.command_line import one_sentence
from flows.deploy import server_url

SILENCE = 100.0  # seconds: a heartbeat comes every 30; 60 late is no death, 10 more to reach the database
HEAD_START = 40.0  # seconds of silence taken over at the start: two more heartbeats are awaited
PERIOD = 3.0  # seconds between two polls
WRITE_TEST = "thousandwords_watch"  # a variable on the server
RUNNING = ["PENDING", "RUNNING", "CANCELLING"]
# event times are of other clocks
ANY_TIME = {"since": "2000-01-01T00:00:00Z", "until": "2200-01-01T00:00:00Z"}


class Run(NamedTuple):
    """What changes while a run lives, and for how many seconds it has not changed."""

    sign: tuple[str, str, int]  # the kind of its state, the state's id, events sent by the run so far
    silent: float = 0.0


def update(runs: dict[str, Run], now: dict[str, Run], passed: float) -> dict[str, Run]:
    """The runs after a poll `passed` seconds later: {"a": Run(x, 5)}, {"a": Run(x)}, 3 -> {"a": Run(x, 8)}"""
    passed = min(passed, 2 * PERIOD)  # far over a period, this process itself was paused
    silent = [name for name, run in now.items() if name in runs and runs[name].sign == run.sign]
    return now | {name: Run(now[name].sign, runs[name].silent + passed) for name in silent}


def after_server_failure(runs: dict[str, Run]) -> dict[str, Run]:
    """The server may have lost a heartbeat, so two more are awaited."""
    return {name: Run(run.sign, min(run.silent, HEAD_START)) for name, run in runs.items()}


def silent_for(seconds: float, runs: dict[str, Run]) -> list[str]:
    return [name for name, run in runs.items() if run.silent >= seconds]


def read_runs(client: SyncPrefectClient, is_first: bool = False) -> dict[str, Run]:
    """The active runs; the first time with their silence so far, as an earlier heartbeat process may have died."""
    query = {"flow_runs": {"state": {"type": {"any_": RUNNING}}}}
    runs = {}
    for run in client.request("POST", "/flow_runs/filter", json=query).json():
        of_run = {"occurred": ANY_TIME, "resource": {"id": [f"prefect.flow-run.{run['id']}"]}}
        events = client.request("POST", "/events/filter", json={"filter": of_run, "limit": 1})
        silent = min(HEAD_START, seconds_since_event(events)) if is_first else 0.0
        runs[run["id"]] = Run((run["state_type"], run["state_id"], events.json()["total"]), silent)
    return runs


def seconds_since_event(answer: httpx.Response) -> float:
    """Seconds since the newest event in the server's answer arrived, by the server's clock alone."""
    received = [event["received"] for event in answer.json()["events"]]
    if not received:
        return 0.0
    now = parsedate_to_datetime(answer.headers["date"])
    return max(0.0, (now - datetime.fromisoformat(received[0])).total_seconds())


def mark_dead(client: SyncPrefectClient, run: str, kind: str) -> None:
    """Mark the run as crashed, or as cancelled if it was being cancelled; the server rejects it for a finished run."""
    message = f"No heartbeat for {SILENCE:.0f} s: the worker or its machine died"
    state = Cancelled(message=message) if kind == "CANCELLING" else Crashed(message=message)
    client.set_flow_run_state(run, state)
    print(f"{run}: {state.name}. {message}", flush=True)


def poll(client: SyncPrefectClient, runs: dict[str, Run] | None, passed: float) -> dict[str, Run]:
    """The runs as they are now; the dead ones are marked. None: this is the first poll."""
    if runs is None:
        return read_runs(client, is_first=True)
    if silent_for(HEAD_START, runs):  # a server whose disk is full stores no heartbeat: raise here
        Variable.set(WRITE_TEST, round(time.monotonic()), overwrite=True)
    runs = update(runs, read_runs(client), passed)
    for name in silent_for(SILENCE, runs):
        mark_dead(client, name, runs[name].sign[0])
    return runs


def watch() -> None:
    runs, last = None, time.monotonic()
    while True:
        try:
            with get_client(sync_client=True) as client:
                runs = poll(client, runs, time.monotonic() - last)
        except (httpx.HTTPError, PrefectException, ValueError, KeyError) as error:
            runs = after_server_failure(runs or {})
            print(f"the server does not answer: {type(error).__name__}", file=sys.stderr, flush=True)
        last = time.monotonic()
        time.sleep(PERIOD)


def main() -> None:
    with one_sentence("heartbeat"):
        server_url()
    watch()


if __name__ == "__main__":
    main()
