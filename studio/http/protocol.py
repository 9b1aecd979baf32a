"""Limits on the connections of the studio's server: the time for headers, and the number of open connections.

    uvicorn.Config(app, http=Protocol, timeout_keep_alive=5)

uvicorn waits without limit for headers and for a client that does not read; its limit_concurrency bounds the
requests that run, not the open connections. This is its h11 protocol with limits for both. Size and time of a
body are limited per request, in studio/http/middleware.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from studio.http.middleware import SECURITY_HEADERS, body_headers, error_body

RETRY_AFTER = 5  # seconds
MAX_REJECTED = 64  # connections above the maximum that get a 503; further ones are closed at once


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with limits for slow or many clients; a subclass can set other limits."""

    header_seconds = (
        20.0  # from the connection, or the first byte of a next request, to the end of the headers
    )
    write_seconds = 20.0  # that an answer waits for its client to read
    linger_seconds = 0.5  # that a rejected client may go on sending, unread, while it reads the error
    max_connections = 512

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.access_log = False  # it would log the query, which holds prompts; the middleware logs instead
        self.is_rejected = False
        self.headers_timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        lingering = _LingeringTransport(transport, self._is_still_sending, self.linger_seconds, self.loop)
        super().connection_made(lingering)
        num_open = len(self.connections)
        if num_open > self.max_connections + MAX_REJECTED:
            self.transport.abort()
        elif num_open > self.max_connections:
            message = (
                f"{self.max_connections} connections are open, which is the maximum; "
                f"try again in {RETRY_AFTER} seconds"
            )
            self._reject(503, message, [(b"retry-after", str(RETRY_AFTER).encode())])
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():  # else the data is discarded
            super().data_received(data)
            self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves this timer running if a connection breaks
        self.headers_timer = _cancel(self.headers_timer)
        self.write_timer = _cancel(self.write_timer)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_timer = self.write_timer or self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_timer = _cancel(self.write_timer)

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:  # uvicorn would read the rest, even if it is endless
            self.transport.close()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._reject(400, "this is not a valid HTTP request; send HTTP/1.1 with one Host and short headers")

    def _should_upgrade(self) -> bool:
        return False  # the studio has no WebSockets, and they would not be counted as connections

    def _watch_headers(self) -> None:
        """Run one timer while headers are awaited, however many pieces they arrive in."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self.headers_timer = _cancel(self.headers_timer)
        elif self.headers_timer is None:
            self.headers_timer = self.loop.call_later(self.header_seconds, self._headers_timed_out)

    def _headers_timed_out(self) -> None:
        if self.conn.trailing_data[0]:
            self._reject(
                408,
                f"the headers did not arrive within {self.header_seconds:g} seconds; send the request again",
            )
        else:
            self.transport.close()  # a spare connection, as browsers open them, without a request

    def _reject(self, status: int, message: str, extra: list[tuple[bytes, bytes]] | None = None) -> None:
        """Send an error instead of the app's answer, unless that has begun, and end the connection."""
        self.is_rejected = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error_body(message)
            headers = [*body_headers(body), *SECURITY_HEADERS, *(extra or []), (b"connection", b"close")]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _is_still_sending(self) -> bool:
        return self.is_rejected or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)


class _LingeringTransport:
    """A transport that, on close, gives a client that is still sending a moment to read the answer.

    A socket that is closed with unread bytes resets the connection, and then the client gets no answer.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        is_still_sending: Callable[[], bool],
        seconds: float,
        loop: asyncio.AbstractEventLoop,
    ):
        self._transport, self._is_still_sending = transport, is_still_sending
        self._seconds, self._loop = seconds, loop
        self._is_lingering = False

    def __getattr__(self, name: str):
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or not self._transport.can_write_eof() or not self._is_still_sending():
            if not self._is_lingering:
                self._transport.close()
            return
        self._is_lingering = True
        self._transport.resume_reading()  # if reading is paused, the client's end would not be noticed
        with contextlib.suppress(OSError):  # the client has left meanwhile
            self._transport.write_eof()
        self._loop.call_later(self._seconds, self._transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer if there is one; returns None for "no timer"."""
    if timer is not None:
        timer.cancel()
