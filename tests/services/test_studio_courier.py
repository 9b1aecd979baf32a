"""The line of requests: in order, with an end, left and stopped at any time; a painter that dies takes one request with it."""
from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
import time

import psutil
import pytest

from studio import courier as couriers
from studio.courier import Courier, Full, NotReady, Request, events_of, pause_after
from studio.painter import Places
from tests.studio_process import TryingPainter
from thousandwords.errors import UserError

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def running(first=lambda: "somewhere"):
    courier = Courier(Places(), first, 200, TryingPainter)
    courier.start()
    try:
        await until(lambda: courier.status != "loading")
        yield courier
    finally:
        await asyncio.to_thread(courier.close)


@pytest.fixture(scope="module")
async def courier():
    """One for all tests: each leaves it as it was, or waits until it is so."""
    async with running() as courier:
        yield courier


async def never() -> bool:
    return False


async def until(is_so) -> None:
    for _ in range(6000):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


def is_at_work(courier: Courier, request: Request) -> bool:
    return courier._at_work is request


async def answers(courier: Courier, prompt: str, seconds: float = 60) -> list[dict]:
    request = courier.ask("draw", folder="", prompt=prompt)
    return [event async for event in events_of(courier, request, seconds, never)]


def names(events: list[dict]) -> list[str]:
    return [event["event"] for event in events]


async def test_requests_are_done_one_after_the_other_and_told_how_many_are_ahead(courier):
    first = courier.ask("draw", folder="", prompt="sleep")
    await until(lambda: is_at_work(courier, first))
    second, third = courier.ask("draw", folder="", prompt="a"), courier.ask("draw", folder="", prompt="b")
    assert [courier.ahead(one) for one in (first, second, third)] == [0, 1, 2]
    heard = []

    async def listen() -> None:
        async for event in events_of(courier, third, 60, never):
            heard.append(event)

    listening = asyncio.create_task(listen())
    await until(lambda: heard)
    assert heard[0] == {"event": "queued", "ahead": 2}
    courier.stop(first)
    await listening
    assert names(heard)[-2:] == ["started", "ranked"] and courier.ahead(third) is None


async def test_a_full_line_takes_no_more_and_works_again_when_it_is_shorter(courier, monkeypatch):
    monkeypatch.setattr(courier, "capacity", 2)
    first = courier.ask("draw", folder="", prompt="sleep")
    await until(lambda: is_at_work(courier, first))
    waiting = [courier.ask("draw", folder="", prompt="a") for _ in range(2)]
    with pytest.raises(Full):
        courier.ask("draw", folder="", prompt="b")
    courier.stop(waiting[0])
    assert courier.waiting() == 1
    third = courier.ask("draw", folder="", prompt="b")
    courier.stop(first)
    assert names([event async for event in events_of(courier, third, 60, never)])[-1] == "ranked"


async def test_what_nobody_waits_for_is_stopped_in_the_middle_and_the_painter_lives_on(courier):
    asked = []

    async def gone() -> bool:
        return len(asked) > 0

    request = courier.ask("draw", folder="", prompt="sleep")
    pid = courier._process.pid
    async for event in events_of(courier, request, 60, gone):
        asked.append(event)
    await until(lambda: not is_at_work(courier, request))
    assert names(await answers(courier, "a")) == ["started", "ranked"]
    assert courier._process.pid == pid


async def test_200_requests_that_are_left_at_once_leave_nothing_behind(courier):
    requests = [courier.ask("draw", folder="", prompt="sleep" if number % 2 else "a") for number in range(200)]
    for request in requests:
        courier.stop(request)
    assert courier.waiting() == 0
    assert names(await answers(courier, "a")) == ["started", "ranked"]


async def test_what_takes_too_long_is_stopped_with_a_sentence(courier):
    *_, last = await answers(courier, "sleep", seconds=0.3)
    assert last["status"] == 503 and last["error"].startswith("this took longer than 0.3 seconds and was stopped. Ask for fewer")
    assert names(await answers(courier, "a")) == ["started", "ranked"]


async def test_a_painter_that_does_not_hear_is_ended(courier, monkeypatch):
    monkeypatch.setattr(couriers, "PATIENCE", 0.3)
    request = courier.ask("draw", folder="", prompt="deaf")
    await until(lambda: is_at_work(courier, request) and not request.events.empty())
    pid = courier._process.pid
    courier.stop(request)
    await until(lambda: courier.status == "ready" and courier._process.pid != pid)
    assert not psutil.pid_exists(pid) and names(await answers(courier, "a")) == ["started", "ranked"]


@pytest.mark.parametrize("prompt, said", [
    ("die", "the process that draws has died, perhaps for lack of memory, and is being replaced. Try again in a moment"),
    ("break", "something went wrong while drawing, and the log says what. Try again"),
    ("CUDA", "something went wrong while drawing, and the log says what. Try again"),
    ("full", "the GPU has no memory left for this. Ask for fewer candidates, or later"),
])  # fmt: skip
async def test_a_request_that_goes_wrong_is_told_and_the_next_is_served(courier, prompt, said):
    pid = courier._process.pid
    waiting = courier.ask("draw", folder="", prompt=prompt)
    behind = courier.ask("draw", folder="", prompt="behind")
    *_, last = [event async for event in events_of(courier, waiting, 60, never)]
    assert (last["status"], last["error"]) == (503, said)
    assert [event async for event in events_of(courier, behind, 60, never)][-1] == {"event": "ranked", "prompt": "behind"}
    assert (courier._process.pid == pid) is (prompt in ("break", "full"))  # a GPU that has failed needs a new process


async def test_without_models_everybody_is_told_why():
    def nothing() -> str:
        raise UserError("there is nothing to draw with. Run: make run")

    async with running(first=nothing) as courier:
        assert courier.status == "broken"
        with pytest.raises(NotReady, match="there is nothing to draw with. Run: make run"):
            courier.ask("draw", folder="", prompt="a")


async def test_a_disk_that_takes_no_package_is_told():
    def full() -> str:
        raise OSError(28, "No space left on device")

    async with running(first=full) as courier:
        with pytest.raises(NotReady, match="the package could not be fetched: .* No space left on device"):
            courier.ask("draw", folder="", prompt="a")


async def test_models_that_come_late_are_found_without_a_new_start(monkeypatch, caplog):
    monkeypatch.setattr(couriers, "RETRY", 0.0)
    problems = ["not yet", "not yet", "damaged"]

    def first() -> str:
        if problems:
            raise UserError(problems.pop(0))
        return "somewhere"

    async with running(first=first) as courier:
        pid = courier._process.pid
        await until(lambda: courier.status == "ready")
        assert names(await answers(courier, "a")) == ["started", "ranked"] and courier._process.pid == pid
    assert [record.message for record in caplog.records] == ["not yet", "damaged"]  # each told once


async def test_whatever_goes_wrong_at_the_start_a_painter_comes_in_the_end(monkeypatch):
    """No memory for a process, then what nobody foresaw, then a death as the models are loaded."""
    monkeypatch.setattr(couriers, "PAUSE", 0.0)
    processes, starts = multiprocessing.get_context("spawn").Process, []
    folders = [ValueError("nobody foresaw it"), "die", "somewhere"]

    def process(**words: object) -> multiprocessing.Process:
        starts.append(made := processes(**words))
        if len(starts) == 1:
            monkeypatch.setattr(made, "start", lambda: os.open(os.devnull + "/none", 0))  # raises OSError
        return made

    def first() -> str:
        if isinstance(found := folders.pop(0), Exception):
            raise found
        return found

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", process)
    async with running(first) as courier:
        assert (courier.status, len(starts)) == ("ready", 4)
        assert names(await answers(courier, "a")) == ["started", "ranked"]


def test_pauses_grow_to_the_longest_and_stay_there_for_ever():
    assert [pause_after(deaths) for deaths in (1, 2, 3, 4, 6, 7, 5000)] == [0, 1, 2, 4, 16, 30, 30]


async def test_who_waits_while_the_models_go_is_told_why():
    folders = ["somewhere"]

    def first() -> str:
        if not folders:
            raise UserError("the package is gone. Run: make run")
        return folders.pop()

    async with running(first) as courier:
        requests = [courier.ask("draw", folder="", prompt=prompt) for prompt in ("die", "a")]
        told = [[event async for event in events_of(courier, request, 60, never)][-1] for request in requests]
        assert told == [couriers.LOST, couriers.unable("the package is gone. Run: make run")]
        assert (courier.status, courier.waiting()) == ("broken", 0)


async def test_an_end_that_comes_as_a_painter_is_begun_leaves_no_process(monkeypatch):
    processes = multiprocessing.get_context("spawn").Process
    courier = Courier(Places(), lambda: "somewhere", make=TryingPainter)
    closing = threading.Thread(target=courier.close)

    def process(**words: object) -> multiprocessing.Process:
        closing.start()
        while not courier._is_closed:
            time.sleep(0.001)
        return processes(**words)

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", process)
    courier.start()
    await asyncio.to_thread(courier._thread.join, 60)
    closing.join(60)
    assert not courier._process.is_alive() and courier._process.exitcode is not None


async def test_an_end_does_not_wait_for_a_pause(monkeypatch):
    monkeypatch.setattr(couriers, "PAUSE", 60.0)
    monkeypatch.setattr(couriers, "LONGEST_PAUSE", 60.0)
    courier = Courier(Places(), lambda: 1 // 0, make=TryingPainter)
    courier.start()
    await until(lambda: courier._deaths == 2)
    await asyncio.to_thread(courier.close)
    assert not courier._thread.is_alive()


async def test_the_end_of_the_server_is_the_painters():
    async with running() as courier:
        request = courier.ask("draw", folder="", prompt="sleep")
        await until(lambda: is_at_work(courier, request))
        pid = courier._process.pid
    assert not psutil.pid_exists(pid) and pid != os.getpid()
