"""python -m flows.watch: marks runs as crashed of which nothing was heard for `SILENCE`; `flows.workers start` starts it.

Prefect's automations compare the clocks of two machines, and go on counting while their server is away: a clock that jumps, or
a minute without a server, would crash runs that work. This watch counts seconds of its own, and waits longer when the server
could not answer or not write. Several may run side by side; where none does, an automation ends such runs in two hours.
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

from flows.bootstrap import server_url
from thousandwords.errors import UserError

SILENCE = 100.0  # seconds: a heartbeat comes each 30, and one that is late by 60 is no death (10 more to reach the database)
HEAD_START = 40.0  # seconds of silence that a watch takes over when it starts: it hears two heartbeats before it judges
PERIOD = 3.0  # seconds between two looks
WRITTEN = "thousandwords_watch"  # a variable on the server
AT_WORK = ["PENDING", "RUNNING", "CANCELLING"]
EVER = {"since": "2000-01-01T00:00:00Z", "until": "2200-01-01T00:00:00Z"}  # the moments of events are of other clocks


class Sign(NamedTuple):
    """What changes while a run lives."""

    kind: str  # of its state: "RUNNING"
    state: str  # its number
    events: int  # that the run has sent so far


@dataclass(frozen=True)
class Heard:
    """The last sign of life of a run, and for how many seconds it has been the last."""

    sign: Sign
    silent: float = 0.0


def listen(known: dict[str, Heard], signs: dict[str, Sign], passed: float) -> dict[str, Heard]:
    """What is known after another look, `passed` seconds later: {"a": Heard(x, 5)}, {"a": x}, 3 -> {"a": Heard(x, 8)}"""

    def heard(run: str, sign: Sign) -> Heard:
        before = known.get(run)
        return Heard(sign, before.silent + passed) if before and before.sign == sign else Heard(sign)

    return {run: heard(run, sign) for run, sign in signs.items()}


def calmed(known: dict[str, Heard]) -> dict[str, Heard]:
    """What is known once the server has failed: it may have lost a heartbeat, so two more are waited for."""
    return {run: Heard(heard.sign, min(heard.silent, HEAD_START)) for run, heard in known.items()}


def counted(seconds: float) -> float:
    """How much of the time since the last look counts: in what is far over a period, this process itself was stopped."""
    return min(seconds, 2 * PERIOD)


def dead(known: dict[str, Heard]) -> list[str]:
    return [run for run, heard in known.items() if heard.silent >= SILENCE]


def suspects(known: dict[str, Heard]) -> list[str]:
    return [run for run, heard in known.items() if heard.silent >= HEAD_START]


def look(client: SyncPrefectClient) -> dict[str, Sign]:
    """The newest sign of life of each run at work."""
    wanted = {"flow_runs": {"state": {"type": {"any_": AT_WORK}}}}
    runs = client.request("POST", "/flow_runs/filter", json=wanted).json()
    return {
        run["id"]: Sign(run["state_type"], run["state_id"], _events(client, run["id"]).json()["total"]) for run in runs
    }


def _events(client: SyncPrefectClient, run: str) -> httpx.Response:
    of_run = {"occurred": EVER, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    return client.request("POST", "/events/filter", json={"filter": of_run, "limit": 1})


def begin(client: SyncPrefectClient) -> dict[str, Heard]:
    """What a watch knows when it starts: somebody who died may have taken the one before along."""
    return {run: Heard(sign, min(HEAD_START, silence(_events(client, run)))) for run, sign in look(client).items()}


def silence(answer: httpx.Response) -> float:
    """Seconds since the newest event in the server's answer came in, by the server's clock alone."""
    received = [event["received"] for event in answer.json()["events"]]
    if not received:
        return 0.0
    now = parsedate_to_datetime(answer.headers["date"])
    return max(0.0, (now - datetime.fromisoformat(received[0])).total_seconds())


def end(client: SyncPrefectClient, run: str, kind: str) -> None:
    """Marks it as crashed, or as cancelled where somebody wanted that; where it has ended by now, the server refuses."""
    told = f"Nothing was heard of it for {SILENCE:.0f} s: the worker or its machine died"
    state = Cancelled(message=told) if kind == "CANCELLING" else Crashed(message=told)
    client.set_flow_run_state(run, state)
    print(f"{run}: {state.name}. {told}", flush=True)


def watch() -> None:
    """Looks for ever."""
    known, last = None, time.monotonic()
    while True:
        try:
            with get_client(sync_client=True) as client:
                if suspects(known or {}):
                    Variable.set(WRITTEN, round(time.monotonic()), overwrite=True)  # one whose disk is full hears no heartbeat
                known = begin(client) if known is None else listen(known, look(client), counted(time.monotonic() - last))
                for run in dead(known):
                    end(client, run, known[run].sign.kind)
        except (httpx.HTTPError, PrefectException, ValueError, KeyError) as error:
            known = calmed(known or {})
            print(f"the server gives no answer: {type(error).__name__}", file=sys.stderr, flush=True)
        last = time.monotonic()
        time.sleep(PERIOD)


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    try:
        server_url()
    except UserError as error:
        print(f"watch: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    watch()


if __name__ == "__main__":
    main()
