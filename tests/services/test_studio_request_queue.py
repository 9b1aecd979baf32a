"""The request queue: order, capacity, stops; a worker process that dies loses one request only."""

import asyncio
import contextlib
import multiprocessing
import os

import psutil
import pytest

from studio.worker import queue as request_queue
from studio.worker.process import StudioPaths
from studio.worker.queue import NotReady, Request, RequestQueue, events_of
from tests.helpers.fake_worker import FakeWorker
from thousandwords.core.errors import UserError

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def running(default_folder=lambda: "somewhere"):
    queue = RequestQueue(StudioPaths(), default_folder, 200, FakeWorker)
    task = asyncio.create_task(queue.run())
    try:
        await until(lambda: queue.status != "loading")
        yield queue
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(scope="module")
async def queue():
    """One for all tests: each leaves it ready, or waits until it is."""
    async with running() as queue:
        yield queue


async def never() -> bool:
    return False


async def until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition did not become true")


def is_running(queue: RequestQueue, request: Request) -> bool:
    return queue._running is request


async def events(queue: RequestQueue, request: Request, seconds: float = 300, is_gone=never) -> list[dict]:
    return [event async for event in events_of(queue, request, seconds, is_gone)]


def submit(queue: RequestQueue, prompt: str) -> Request:
    return queue.submit("generate", folder="", prompt=prompt)


async def answers(queue: RequestQueue, prompt: str, seconds: float = 300) -> list[dict]:
    return await events(queue, submit(queue, prompt), seconds)


def names(events: list[dict]) -> list[str]:
    return [event["event"] for event in events]


async def test_requests_run_in_order_and_get_the_number_of_requests_ahead(queue):
    first = submit(queue, "sleep")
    await until(lambda: is_running(queue, first))
    second, third = submit(queue, "a"), submit(queue, "b")
    assert [queue.num_ahead(request) for request in (first, second, third)] == [0, 1, 2]
    stream = events_of(queue, third, 300, never)
    assert await anext(stream) == {"event": "queued", "ahead": 2}
    queue.stop(first)
    assert [event["event"] async for event in stream][-2:] == ["started", "ranked"]
    assert queue.num_ahead(third) is None


async def test_a_request_that_takes_too_long_is_stopped_with_a_message(queue):
    *_, last = await answers(queue, "sleep", seconds=0.3)
    message = "this took longer than 0.3 seconds and was stopped. Request fewer"
    assert last["status"] == 503 and last["error"].startswith(message)
    assert names(await answers(queue, "a")) == ["started", "ranked"]


async def test_a_worker_that_ignores_the_stop_signal_is_ended(queue, monkeypatch):
    monkeypatch.setattr(request_queue, "STOP_TIMEOUT", 0.3)
    request = submit(queue, "ignore signals")
    await until(lambda: is_running(queue, request) and not request.events.empty())
    pid = queue._process.pid
    queue.stop(request)
    await until(lambda: queue.status == "ready" and queue._process.pid != pid)
    assert not psutil.pid_exists(pid) and names(await answers(queue, "a")) == ["started", "ranked"]


FAILED = "the request failed; the studio's log has the reason. Try again"
NO_MEMORY = "the GPU has not enough free memory. Request fewer candidates, or try again later"


@pytest.mark.parametrize(
    "prompt, message, is_new_process",
    [
        ("die", request_queue.WORKER_DIED["error"], True),
        ("fail", FAILED, False),
        ("CUDA", FAILED, True),
        ("out of memory", NO_MEMORY, False),
    ],
)
async def test_a_failed_request_gets_a_message_and_the_next_one_runs(queue, prompt, message, is_new_process):
    pid = queue._process.pid
    failing, behind = submit(queue, prompt), submit(queue, "behind")
    *_, last = await events(queue, failing)
    assert (last["status"], last["error"]) == (503, message)
    assert (await events(queue, behind))[-1] == {"event": "ranked", "prompt": "behind"}
    assert (queue._process.pid != pid) is is_new_process


@pytest.mark.parametrize(
    "error, message",
    [
        (UserError("there is no model. Run: make run"), "^there is no model. Run: make run$"),
        (OSError(28, "No space left on device"), "the package could not be fetched: .* No space left on dev"),
    ],
)
async def test_without_models_every_request_gets_the_reason(error, message):
    def no_package() -> str:
        raise error

    async with running(no_package) as queue:
        assert queue.status == "broken"
        with pytest.raises(NotReady, match=message):
            submit(queue, "a")


async def test_models_that_appear_later_are_loaded_without_a_restart(monkeypatch, caplog):
    monkeypatch.setattr(request_queue, "LOAD_RETRY_INTERVAL", 0.0)
    problems = ["not yet", "not yet", "damaged"]

    def default_folder() -> str:
        if problems:
            raise UserError(problems.pop(0))
        return "somewhere"

    async with running(default_folder) as queue:
        pid = queue._process.pid
        await until(lambda: queue.status == "ready")
        assert names(await answers(queue, "a")) == ["started", "ranked"] and queue._process.pid == pid
    assert [record.message for record in caplog.records] == ["not yet", "damaged"]  # each logged once


async def test_a_worker_starts_after_failures_of_every_kind(monkeypatch):
    """No memory for a process, then an unexpected exception, then a death while the models are loaded."""
    monkeypatch.setattr(request_queue, "RESTART_DELAY", 0.0)
    start_process, starts = multiprocessing.get_context("spawn").Process, []
    folders = [ValueError("unexpected"), "die", "somewhere"]

    def make_process(**arguments: object) -> multiprocessing.Process:
        starts.append(process := start_process(**arguments))
        if len(starts) == 1:
            monkeypatch.setattr(process, "start", lambda: os.open(os.devnull + "/none", 0))  # raises OSError
        return process

    def default_folder() -> str:
        if isinstance(folder := folders.pop(0), Exception):
            raise folder
        return folder

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", make_process)
    async with running(default_folder) as queue:
        assert (queue.status, len(starts)) == ("ready", 4)
        assert names(await answers(queue, "a")) == ["started", "ranked"]


async def test_waiting_requests_get_the_reason_when_the_models_disappear():
    folders = ["somewhere"]

    def default_folder() -> str:
        if not folders:
            raise UserError("the package is gone. Run: make run")
        return folders.pop()

    async with running(default_folder) as queue:
        requests = [submit(queue, prompt) for prompt in ("die", "a")]
        answers = [(await events(queue, request))[-1] for request in requests]
        problem = request_queue.unavailable("the package is gone. Run: make run")
        assert answers == [request_queue.WORKER_DIED, problem]
        assert (queue.status, queue.num_waiting()) == ("broken", 0)


async def test_the_worker_ends_with_the_server():
    async with running() as queue:
        request = submit(queue, "sleep")
        await until(lambda: is_running(queue, request))
        pid = queue._process.pid
    assert not psutil.pid_exists(pid) and pid != os.getpid()
