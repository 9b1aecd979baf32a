"""python -m flows.workers.heartbeat: marks runs as crashed that sent no heartbeat for `SILENCE` seconds.

`make workers` starts it. Prefect's automations compare the clocks of two machines, and go on counting while
their server is down: a clock that jumps, or a minute without a server, would crash healthy runs. This process
counts its own seconds, and waits longer after the server failed to answer or to write. Several may run side
by side; if none runs, an automation ends such runs after two hours.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed
from prefect.variables import Variable

from flows.deploy import server_url
from thousandwords.core.errors import UserError

SILENCE = 100.0  # seconds: a heartbeat comes every 30; 60 late is no death, and 10 more for it to reach the database
HEAD_START = (
    40.0  # seconds of silence taken over at the start: two heartbeats are awaited before a run counts as dead
)
PERIOD = 3.0  # seconds between two polls
WRITE_TEST = "thousandwords_watch"  # a variable on the server
RUNNING = ["PENDING", "RUNNING", "CANCELLING"]
ANY_TIME = {
    "since": "2000-01-01T00:00:00Z",
    "until": "2200-01-01T00:00:00Z",
}  # event times are of other clocks


class LifeSign(NamedTuple):
    """What changes while a run lives."""

    kind: str  # of its state: "RUNNING"
    state: str  # the state's id
    events: int  # sent by the run so far


@dataclass(frozen=True)
class Observation:
    """The last life sign of a run, and for how many seconds it has not changed."""

    sign: LifeSign
    silent: float = 0.0


def update(
    observations: dict[str, Observation], signs: dict[str, LifeSign], passed: float
) -> dict[str, Observation]:
    """The observations after a poll `passed` seconds later.

    {"a": Observation(x, 5)}, {"a": x}, 3 -> {"a": Observation(x, 8)}
    """

    def observe(run: str, sign: LifeSign) -> Observation:
        before = observations.get(run)
        return (
            Observation(sign, before.silent + passed) if before and before.sign == sign else Observation(sign)
        )

    return {run: observe(run, sign) for run, sign in signs.items()}


def after_server_failure(observations: dict[str, Observation]) -> dict[str, Observation]:
    """The observations after the server failed: it may have lost a heartbeat, so two more are awaited."""
    return {
        run: Observation(observation.sign, min(observation.silent, HEAD_START))
        for run, observation in observations.items()
    }


def counted(seconds: float) -> float:
    """How much of the time since the last poll counts: far over a period, this process itself was paused."""
    return min(seconds, 2 * PERIOD)


def dead_runs(observations: dict[str, Observation]) -> list[str]:
    return [run for run, observation in observations.items() if observation.silent >= SILENCE]


def suspected_runs(observations: dict[str, Observation]) -> list[str]:
    return [run for run, observation in observations.items() if observation.silent >= HEAD_START]


def read_signs(client: SyncPrefectClient) -> dict[str, LifeSign]:
    """The newest life sign of each active run."""
    query = {"flow_runs": {"state": {"type": {"any_": RUNNING}}}}
    runs = client.request("POST", "/flow_runs/filter", json=query).json()
    return {
        run["id"]: LifeSign(run["state_type"], run["state_id"], _events(client, run["id"]).json()["total"])
        for run in runs
    }


def _events(client: SyncPrefectClient, run: str) -> httpx.Response:
    of_run = {"occurred": ANY_TIME, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    return client.request("POST", "/events/filter", json={"filter": of_run, "limit": 1})


def first_observations(client: SyncPrefectClient) -> dict[str, Observation]:
    """The observations at the start; the heartbeat process before this one may have died with a run."""
    return {
        run: Observation(sign, min(HEAD_START, seconds_since_event(_events(client, run))))
        for run, sign in read_signs(client).items()
    }


def seconds_since_event(answer: httpx.Response) -> float:
    """Seconds since the newest event in the server's answer arrived, by the server's clock alone."""
    received = [event["received"] for event in answer.json()["events"]]
    if not received:
        return 0.0
    now = parsedate_to_datetime(answer.headers["date"])
    return max(0.0, (now - datetime.fromisoformat(received[0])).total_seconds())


def mark_dead(client: SyncPrefectClient, run: str, kind: str) -> None:
    """Mark the run as crashed, or as cancelled if it was being cancelled.

    The server rejects this for a finished run.
    """
    message = f"No heartbeat for {SILENCE:.0f} s: the worker or its machine died"
    state = Cancelled(message=message) if kind == "CANCELLING" else Crashed(message=message)
    client.set_flow_run_state(run, state)
    print(f"{run}: {state.name}. {message}", flush=True)


def watch() -> None:
    """Poll for ever."""
    observations, last = None, time.monotonic()
    while True:
        try:
            with get_client(sync_client=True) as client:
                if suspected_runs(
                    observations or {}
                ):  # a server whose disk is full stores no heartbeat: raise here
                    Variable.set(WRITE_TEST, round(time.monotonic()), overwrite=True)
                if observations is None:
                    observations = first_observations(client)
                else:
                    passed = counted(time.monotonic() - last)
                    observations = update(observations, read_signs(client), passed)
                for run in dead_runs(observations):
                    mark_dead(client, run, observations[run].sign.kind)
        except (httpx.HTTPError, PrefectException, ValueError, KeyError) as error:
            observations = after_server_failure(observations or {})
            print(f"the server does not answer: {type(error).__name__}", file=sys.stderr, flush=True)
        last = time.monotonic()
        time.sleep(PERIOD)


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    try:
        server_url()
    except UserError as error:
        print(f"heartbeat: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    watch()


if __name__ == "__main__":
    main()
