"""The request queue between the web server and the worker process.

A thread passes the requests to the worker process one by one and collects their events. The queue has a
limited length (`QueueFull`); a request can leave it or be stopped while it runs (`RequestQueue.stop`). A
worker process that dies is replaced, and only the request that it was handling is lost. `Request.events` is
read by one task of the server's event loop.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import itertools
import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from studio.events import Event
from studio.worker.process import STOP_SIGNAL, StudioPaths, run_worker, unavailable
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
    """One request to the worker process, and the events that it answers."""

    name: str
    arguments: dict
    loop: asyncio.AbstractEventLoop
    number: int
    kill_at: float = math.inf  # by time.monotonic(), once it is stopped
    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)

    def put_event(self, event: Event | None) -> None:
        """Add an event from the queue's thread; None is the end."""
        with contextlib.suppress(RuntimeError):  # the server has stopped
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class RequestQueue:
    """The waiting requests, and the thread that passes them to a worker process.

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
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="request-queue", daemon=True)
        self._context = multiprocessing.get_context("spawn")
        self._stop_number = self._context.Value(ctypes.c_ulonglong, 0, lock=False)
        self._process, self._pipe, self._deaths = None, None, 0

    # --- for the server -------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, name: str, **arguments: object) -> Request:
        """Add a request at the end, called in the event loop. Raises QueueFull or NotReady."""
        with self._changed:
            if self.status != "ready":
                raise NotReady(self.problem)
            if len(self._waiting) >= self.capacity:
                raise QueueFull
            request = Request(name, arguments, asyncio.get_running_loop(), next(self._numbers))
            self._waiting.append(request)
            self._changed.notify()
            return request

    def num_ahead(self, request: Request) -> int | None:
        """The number of requests before this one: 0 if it is next or running, None if it has ended."""
        with self._changed:
            if request is self._running:
                return 0
            with contextlib.suppress(ValueError):
                return self._waiting.index(request) + (self._running is not None)
        return None

    def num_waiting(self) -> int:
        return len(self._waiting)

    def stop(self, request: Request) -> None:
        """Remove a request from the queue, or interrupt it; nothing happens if it has ended."""
        with self._changed:
            request.kill_at = time.monotonic() + STOP_TIMEOUT
            if request in self._waiting:
                self._waiting.remove(request)
            elif request is self._running:
                self._stop_number.value = request.number
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, STOP_SIGNAL)

    def close(self) -> None:
        """End the worker process and the thread; waiting requests get an error."""
        with self._changed:
            self._is_closed = True
            self._reject_waiting(WORKER_DIED)
            self._changed.notify()
        self._kill_process()
        self._thread.join(5)

    def _reject_waiting(self, event: Event) -> None:
        """Send an error to all waiting requests; the caller holds `_changed`."""
        for request in self._waiting:
            request.put_event(event)
            request.put_event(None)
        self._waiting.clear()

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._start_process()
                self._handle_requests()
            except (EOFError, OSError):  # the worker process has died, or there is no memory to start one
                self._prepare_restart()
            except Exception:  # without this thread no request would be handled any more
                log.exception("the request queue failed")
                self._prepare_restart()

    def _start_process(self) -> None:
        """Start a worker process, load the default package and generate one image with it."""
        own_end, worker_end = self._context.Pipe()
        arguments = (worker_end, self._stop_number, self.paths, self.make_worker)
        process = self._context.Process(target=run_worker, args=arguments, name="model-worker", daemon=True)
        process.start()
        worker_end.close()
        self._pipe, self._process = own_end, process  # not before it runs: `close` kills it
        if self._is_closed:  # `close` was called meanwhile and did not see this process
            self._kill_process()
            return
        self._load_models()

    def _load_models(self) -> None:
        """Load the models. On failure all requests get the reason, and loading is tried again later."""
        problem = self._warm_up()
        with self._changed:
            if not problem:
                self.status, self.problem, self._deaths = "ready", "", 0
                return
            if problem != self.problem:
                log.error("%s", problem)
            self.status, self.problem = "broken", problem
            self._next_load = time.monotonic() + LOAD_RETRY_INTERVAL
            self._reject_waiting(unavailable(problem))

    def _warm_up(self) -> str:
        """The reason why the models cannot be used, "" if they can."""
        try:
            folder = self.default_folder()
        except UserError as error:
            return str(error)
        except OSError as error:  # a full disk is no death of the worker process
            return f"the package could not be fetched: {error}"
        problem = ""
        self._pipe.send((0, "warm_up", {"folder": folder}))
        while (event := self._pipe.recv()) is not None:
            problem = event.get("error", "")
        return problem

    def _handle_requests(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._is_closed, IDLE_CHECK_INTERVAL)
                if self._is_closed:
                    return
                self._running = self._waiting.popleft() if self._waiting else None
            if self._running is not None:
                self._handle(self._running)
            elif not self._process.is_alive():
                raise EOFError
            elif self.status == "broken" and time.monotonic() > self._next_load:
                self._load_models()

    def _handle(self, request: Request) -> None:
        """Send one request to the worker process, and collect its events up to the last."""
        try:
            self._pipe.send((request.number, request.name, request.arguments))
            is_over = False
            while not is_over:
                if time.monotonic() > request.kill_at:
                    self._kill_process()
                if self._pipe.poll(0.25):
                    event = self._pipe.recv()
                    request.put_event(event)
                    is_over = event is None
        except Exception:
            request.put_event(WORKER_DIED)
            request.put_event(None)
            raise

    def _prepare_restart(self) -> None:
        """After a death: waiting requests stay in the queue; repeated deaths lead to growing delays."""
        with self._changed:
            self._running = None
            if self._is_closed:
                return
            self.status, self.problem = "loading", ""
            self._deaths += 1
        self._kill_process()
        exit_code = self._process and self._process.exitcode
        log.warning("the worker process has died (exit code %s) and is restarted", exit_code)
        # no delay after the first death, then RESTART_DELAY, doubled each time up to the maximum
        delay = (
            min(RESTART_DELAY * 2 ** min(self._deaths - 2, 10), MAX_RESTART_DELAY) if self._deaths > 1 else 0
        )
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, delay)

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
                yield unavailable(
                    f"this took longer than {seconds:g} seconds and was stopped. Request fewer candidates, "
                    "or start the studio with a larger --deadline"
                )
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
