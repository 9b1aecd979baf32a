"""Between the web server and the painter: a line of requests, one courier who takes them over one by one, and what comes back.

The line has an end (`Full`), a request may leave it or be stopped at work (`Request.stop`), a painter that dies is replaced, and
only the request that it was at is lost. `Request.events` can be read by one task of the server's event loop.
"""
from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import itertools
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from studio.easel import Event
from studio.painter import STOP, Painter, Places, paint, unable
from thousandwords.errors import UserError

PATIENCE = 10.0  # seconds that a stopped request may go on (one long operation of torch) before its process is ended
GLANCE = 0.5  # seconds after which it is looked whether a painter without work is alive
RETRY = 5.0  # seconds after which models that could not be loaded are tried again
PAUSE = 1.0  # seconds before a painter that died is replaced, more each time that it dies before it was ready
LONGEST_PAUSE = 30.0
LOST = unable("the process that draws has died, perhaps for lack of memory, and is being replaced. Try again in a moment")

log = logging.getLogger("studio")


class Full(Exception):
    """As many requests wait as may."""


class NotReady(Exception):
    """The models are not loaded, or cannot be."""


@dataclass(eq=False)
class Request:
    """One thing asked of the painter, and what comes back of it."""

    name: str
    arguments: dict
    loop: asyncio.AbstractEventLoop
    number: int
    is_stopped: bool = False
    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)

    def tell(self, event: Event | None) -> None:
        """From the courier's thread; None is the end."""
        with contextlib.suppress(RuntimeError):  # the server is gone
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Courier:
    """The line of requests, and the thread that takes them to a painter.

    `first` tells the folder of the package that a new painter loads before all others; it may raise UserError.
    """

    def __init__(
        self, places: Places, first: Callable[[], str], capacity: int = 16, make: Callable[[Places], Painter] = Painter
    ) -> None:
        self.places, self.first, self.capacity, self.make = places, first, capacity, make
        self.status, self.problem = "loading", ""
        self._waiting: collections.deque[Request] = collections.deque()
        self._at_work: Request | None = None
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._context = multiprocessing.get_context("spawn")
        self._wanted_stop = self._context.Value(ctypes.c_ulonglong, 0, lock=False)
        self._process, self._pipe, self._deaths = None, None, 0

    # --- for the server ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def ask(self, name: str, **arguments: object) -> Request:
        """Puts a request at the end of the line, from the event loop. Raises Full or NotReady."""
        with self._changed:
            if self.status != "ready":
                raise NotReady(self.problem)
            if len(self._waiting) >= self.capacity:
                raise Full
            request = Request(name, arguments, asyncio.get_running_loop(), next(self._numbers))
            self._waiting.append(request)
            self._changed.notify()
            return request

    def ahead(self, request: Request) -> int | None:
        """How many are done before it: 0 where it is the next or at work, None where it is neither."""
        with self._changed:
            if request is self._at_work:
                return 0
            with contextlib.suppress(ValueError):
                return self._waiting.index(request) + (self._at_work is not None)
        return None

    def waiting(self) -> int:
        return len(self._waiting)

    def stop(self, request: Request) -> None:
        """Nobody wants the rest of it: it leaves the line, or is interrupted. No harm where it has ended."""
        with self._changed:
            request.is_stopped = True
            if request in self._waiting:
                self._waiting.remove(request)
            elif request is self._at_work:
                self._wanted_stop.value = request.number
                self._signal()

    def close(self) -> None:
        """Ends the painter and the thread; whoever waits is told."""
        with self._changed:
            self._is_closed = True
            self._turn_away(LOST)
            self._changed.notify()
        self._end()
        self._thread.join(5)

    def _turn_away(self, event: Event) -> None:
        """Tells all who wait; by whom `_changed` is held."""
        for request in self._waiting:
            request.tell(event)
            request.tell(None)
        self._waiting.clear()

    # --- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._begin()
                self._deliver_all()
            except (EOFError, OSError):  # the painter has died, or there is no memory to start one
                self._replace()
            except Exception:  # of whatever kind: without this thread nobody would be served any more
                log.exception("the line of requests has failed")
                self._replace()

    def _begin(self) -> None:
        """A painter, with the models that are asked for most in memory and used once."""
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._wanted_stop, self.places, self.make)
        process = self._context.Process(target=paint, args=arguments, name="painter", daemon=True)
        process.start()
        theirs.close()
        self._pipe, self._process = ours, process  # not before it runs: what was never started cannot be ended
        if self._is_closed:  # meanwhile, and `close` did not find this one
            self._end()
            return
        self._prepare()

    def _prepare(self) -> None:
        """Models in memory, used once. Where they cannot be, all who wait and ask are told, and it is tried again later."""
        problem = self._warm()
        with self._changed:
            if problem:
                if problem != self.problem:
                    log.error("%s", problem)
                self.status, self.problem, self._next_try = "broken", problem, time.monotonic() + RETRY
                self._turn_away(unable(problem))
            else:
                self.status, self.problem, self._deaths = "ready", "", 0

    def _warm(self) -> str:
        """What keeps the models from being used; "": nothing."""
        try:
            folder = self.first()
        except UserError as error:
            return str(error)
        except OSError as error:  # a full disk that takes no package is no painter's death
            return f"the package could not be fetched: {error}"
        problem = ""
        self._pipe.send((0, "warm", {"folder": folder}))
        while (event := self._pipe.recv()[1]) is not None:
            problem = event["error"] if event.get("event") == "error" else problem
        return problem

    def _deliver_all(self) -> None:
        while True:
            with self._changed:
                self._at_work = None
                self._changed.wait_for(lambda: self._waiting or self._is_closed, GLANCE)
                if self._is_closed:
                    return
                self._at_work = self._waiting.popleft() if self._waiting else None
            if self._at_work is not None:
                self._deliver(self._at_work)
            elif not self._process.is_alive():
                raise EOFError
            elif self.status == "broken" and time.monotonic() > self._next_try:
                self._prepare()

    def _deliver(self, request: Request) -> None:
        """One request to the painter, and its events back until the last."""
        stopped_at = None
        try:
            self._pipe.send((request.number, request.name, request.arguments))
            while True:
                if request.is_stopped:
                    stopped_at = stopped_at or time.monotonic()
                    if time.monotonic() - stopped_at > PATIENCE:
                        self._end()
                if not self._pipe.poll(0.25):
                    continue
                _, event = self._pipe.recv()
                if event is None:
                    return
                request.tell(event)
        except (EOFError, OSError):
            request.tell(LOST)
            raise
        finally:
            request.tell(None)

    def _replace(self) -> None:
        """After a death: those who wait keep their places; a painter that dies again and again is given pauses."""
        with self._changed:
            self._at_work = None
            if self._is_closed:
                return
            self.status, self.problem = "loading", ""
            self._deaths += 1
        self._end()
        log.warning("the painter has died (exit code %s); a new one is started", self._process and self._process.exitcode)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, pause_after(self._deaths))

    def _signal(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, STOP)

    def _end(self) -> None:
        """The painter's end, gently if it can."""
        process = self._process
        if process is None:
            return
        process.terminate()
        process.join(2)
        if process.is_alive():
            process.kill()
            process.join(2)


def pause_after(deaths: int) -> float:
    """Seconds before the next painter, after so many that died in turn: none, then twice as long each time, up to the longest."""
    return 0.0 if deaths < 2 else min(PAUSE * 2 ** min(deaths - 2, 10), LONGEST_PAUSE)  # 2^1024 is more than a float holds


async def events_of(courier: Courier, request: Request, seconds: float, is_gone: Callable) -> AsyncIterator[Event]:
    """What comes back of a request, with its place in the line while it waits; it is stopped where the asker has gone.

    `is_gone` is awaited now and then; `seconds` is the longest that it may take from now on. However this ends, the request does.
    """
    deadline, told = time.monotonic() + seconds, None
    try:
        while not await is_gone():
            if time.monotonic() > deadline:
                yield too_long(seconds)
                return
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(request.events.get(), 0.2)
                if event is not None:
                    yield event
                if event is None or event.get("event") == "error":
                    return
                continue
            ahead = courier.ahead(request)
            if ahead and ahead != told:
                told = ahead
                yield {"event": "queued", "ahead": ahead}
    finally:
        courier.stop(request)


def too_long(seconds: float) -> Event:
    return unable(
        f"this took longer than {seconds:g} seconds and was stopped. Ask for fewer candidates, or start the studio with a "
        "larger --deadline"
    )
