"""The request queue between the web server and the worker process.

A task of the server's event loop passes the requests to the worker process one by one and collects their
events. The queue has a limited length; a request can leave it or be stopped while it runs. A worker process that
dies is replaced, and only the request that it was handling is lost.
"""

import asyncio
import collections
import contextlib
import ctypes
import itertools
import logging
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from studio.worker.process import STOP_SIGNAL, Event, StudioPaths, run_worker, unavailable
from thousandwords.core.errors import UserError

STOP_TIMEOUT = 10.0  # seconds that a stopped request has to end; then its process is killed
IDLE_CHECK_INTERVAL = 0.5  # seconds between checks that an idle worker process is alive
LOAD_RETRY_INTERVAL = 5.0  # seconds until models that could not be loaded are tried again
RESTART_DELAY = 1.0  # seconds; doubled with each worker process that dies before it was ready
MAX_RESTART_DELAY = 30.0
WORKER_DIED = unavailable(
    "the process that runs the models has died, perhaps for lack of memory, and is being restarted. "
    "Try again in a moment"
)

log = logging.getLogger("studio")


class QueueFull(Exception):
    """As many requests wait as the queue holds."""


class NotReady(Exception):
    """The models are not loaded, or cannot be loaded."""


def make_model_worker(paths: StudioPaths) -> object:
    from studio.worker.models import ModelWorker  # here: the server does not need it, and it takes seconds

    return ModelWorker(paths)


@dataclass(eq=False)
class Request:
    """One request to the worker process, and the events that it answers; None is the end."""

    name: str
    arguments: dict
    number: int
    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)

    def end(self, *events: Event) -> None:
        for event in (*events, None):
            self.events.put_nowait(event)


class RequestQueue:
    """The waiting requests, and the worker process. All of it belongs to one event loop.

    `default_folder()` is the folder of the package that a new worker process loads; it may raise UserError.
    """

    def __init__(
        self,
        paths: StudioPaths,
        default_folder: Callable[[], str],
        capacity: int = 16,
        make_worker: Callable = make_model_worker,
    ) -> None:
        self.paths, self.default_folder, self.capacity = paths, default_folder, capacity
        self.make_worker = make_worker
        self.status, self.problem = "loading", ""
        self._waiting: collections.deque[Request] = collections.deque()
        self._running: Request | None = None
        self._numbers, self._has_request = itertools.count(1), asyncio.Event()
        self._context = multiprocessing.get_context("spawn")
        self._stop_number = self._context.Value(ctypes.c_ulonglong, 0, lock=False)
        self._process, self._pipe, self._deaths, self._next_load = None, None, 0, 0.0

    def submit(self, name: str, **arguments: object) -> Request:
        """Add a request at the end. Raises QueueFull or NotReady."""
        if self.status != "ready":
            raise NotReady(self.problem or "the models are being loaded. Try again in a moment")
        if len(self._waiting) >= self.capacity:
            raise QueueFull(f"the queue is full: {self.capacity} requests wait. Try again in a moment")
        request = Request(name, arguments, next(self._numbers))
        self._waiting.append(request)
        self._has_request.set()
        return request

    def num_ahead(self, request: Request) -> int | None:
        """The number of requests before this one: 0 if it is next or running, None if it has ended."""
        if request is self._running:
            return 0
        if request in self._waiting:
            return self._waiting.index(request) + (self._running is not None)
        return None

    def num_waiting(self) -> int:
        return len(self._waiting)

    def stop(self, request: Request) -> None:
        """Remove a request from the queue, or interrupt it; nothing happens if it has ended."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request is self._running:
            self._stop_number.value = request.number
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, STOP_SIGNAL)
            asyncio.get_running_loop().call_later(STOP_TIMEOUT, self._kill_if_running, request)

    def _kill_if_running(self, request: Request) -> None:
        if request is self._running:
            self._kill_process()

    async def run(self) -> None:
        """Handle requests until this is cancelled; then the worker process ends, and waiting requests get an error."""
        try:
            while True:
                try:
                    self._pipe, worker_end = self._context.Pipe()
                    arguments = (worker_end, self._stop_number, self.paths, self.make_worker)
                    options = {"args": arguments, "name": "model-worker", "daemon": True}
                    process = self._context.Process(target=run_worker, **options)
                    process.start()
                    self._process = process
                    worker_end.close()
                    await self._load_models()
                    await self._handle_requests()
                except (EOFError, OSError):  # the worker process has died, or there is no memory to start one
                    pass
                except Exception:  # without this task no request would be handled any more
                    log.exception("the request queue failed")
                await self._prepare_restart()
        finally:
            self._kill_process()
            self._reject_waiting(WORKER_DIED)

    def _reject_waiting(self, event: Event) -> None:
        while self._waiting:
            self._waiting.popleft().end(event)

    async def _load_models(self) -> None:
        """Load the default package and generate an image; a failure is the answer to all requests until the next try."""
        problem = ""
        try:
            folder = await asyncio.to_thread(self.default_folder)
        except UserError as error:
            problem = str(error)
        except OSError as error:  # a full disk is no death of the worker process
            problem = f"the package could not be fetched: {error}"
        else:
            async for event in self._ask(0, "warm_up", {"folder": folder}):
                problem = event.get("error", "")
        if not problem:
            self.status, self.problem, self._deaths = "ready", "", 0
            return
        if problem != self.problem:
            log.error("%s", problem)
        self.status, self.problem = "broken", problem
        self._next_load = time.monotonic() + LOAD_RETRY_INTERVAL
        self._reject_waiting(unavailable(problem))

    async def _ask(self, *request: object) -> AsyncIterator[Event]:
        """The events that the worker process answers. In threads: both ends of the pipe may wait."""
        await asyncio.to_thread(self._pipe.send, request)
        while (event := await asyncio.to_thread(self._pipe.recv)) is not None:
            yield event

    async def _handle_requests(self) -> None:
        while True:
            self._has_request.clear()
            if not self._waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._has_request.wait(), IDLE_CHECK_INTERVAL)
            if self._waiting:
                self._running = request = self._waiting.popleft()
                try:
                    async for event in self._ask(request.number, request.name, request.arguments):
                        request.events.put_nowait(event)
                    request.end()
                except BaseException:
                    request.end(WORKER_DIED)
                    raise
                self._running = None
            elif not self._process.is_alive():
                raise EOFError
            elif self.status == "broken" and time.monotonic() > self._next_load:
                await self._load_models()

    async def _prepare_restart(self) -> None:
        """After a death: waiting requests stay in the queue; repeated deaths lead to growing delays."""
        self._running, self.status, self.problem = None, "loading", ""
        self._deaths += 1
        self._kill_process()
        exit_code = self._process and self._process.exitcode
        log.warning("the worker process has died (exit code %s) and is restarted", exit_code)
        if self._deaths > 1:
            await asyncio.sleep(min(RESTART_DELAY * 2 ** min(self._deaths - 2, 10), MAX_RESTART_DELAY))

    def _kill_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(2)


async def events_of(
    queue: RequestQueue, request: Request, seconds: float, is_gone: Callable
) -> AsyncIterator[Event]:
    """Yield the events of a request, and its position while it waits; stop it when its client has gone.

    `is_gone` is awaited regularly; the request may take `seconds` from now. It is stopped however this
    generator ends.
    """
    deadline, last_ahead = time.monotonic() + seconds, None
    try:
        while not await is_gone():
            if time.monotonic() > deadline:
                fix = "Request fewer candidates, or start the studio with a larger --deadline"
                yield unavailable(f"this took longer than {seconds:g} seconds and was stopped. {fix}")
                return
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(request.events.get(), 0.2)
                if event is not None:
                    yield event
                if event is None or event.get("event") == "error":
                    return
                continue
            ahead = queue.num_ahead(request)
            if ahead and ahead != last_ahead:
                last_ahead = ahead
                yield {"event": "queued", "ahead": ahead}
    finally:
        queue.stop(request)
