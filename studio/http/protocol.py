"""The connections of the studio's server: how long one may take over its headers, and how many there may be.

    uvicorn.Config(app, http=Protocol, timeout_keep_alive=5)

uvicorn waits for headers, and for a client to read, for ever; its limit_concurrency bounds what is answered, not what is
open. This is its h11 protocol with both mended. A body's size and time are a request's: see studio/doors.py.
"""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from studio.doors import SECURITY_HEADERS, body_headers, error_body

RETRY_AFTER = 5  # seconds
UNTOLD = 64  # connections above the most that are told so; the ones above are cut at once


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 for clients that are slow or many; a subclass may set other seconds and numbers."""

    header_seconds = 20.0  # from the connection, or from a next request's first byte, to the end of the headers
    write_seconds = 20.0  # that an answer may wait for its client to read on
    linger_seconds = 0.5  # that a refused client may go on sending, unread, while it reads why
    most_connections = 512

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.access_log = False  # its line would hold the query, which holds prompts; doors.py logs instead
        self.is_refused = False
        self.headers_due: asyncio.TimerHandle | None = None
        self.reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(_Lingering(transport, self._is_still_sending, self.linger_seconds, self.loop))
        open_now = len(self.connections)
        if open_now > self.most_connections + UNTOLD:
            self.transport.abort()
        elif open_now > self.most_connections:
            sentence = f"{self.most_connections} connections are open, as many as may be; try again in {RETRY_AFTER} seconds"
            self._refuse(503, sentence, [(b"retry-after", str(RETRY_AFTER).encode())])
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():  # else it is thrown away
            super().data_received(data)
            self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it running where a connection broke
        self.headers_due = _cancelled(self.headers_due)
        self.reading_due = _cancelled(self.reading_due)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading_due = self.reading_due or self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.reading_due = _cancelled(self.reading_due)

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:  # uvicorn would read what is left of it, be it endless
            self.transport.close()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP request that can be read; send HTTP/1.1 with one Host and short headers")

    def _should_upgrade(self) -> bool:
        return False  # the studio has no WebSockets, and one would leave the count of connections

    def _watch_headers(self) -> None:
        """Has one timer run while headers are awaited, however many pieces they come in."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self.headers_due = _cancelled(self.headers_due)
        elif self.headers_due is None:
            self.headers_due = self.loop.call_later(self.header_seconds, self._headers_are_late)

    def _headers_are_late(self) -> None:
        if self.conn.trailing_data[0]:
            sentence = f"the headers did not come within {self.header_seconds:g} seconds; send the request again"
            self._refuse(408, sentence)
        else:
            self.transport.close()  # a spare connection, as browsers open them: it asked nothing

    def _refuse(self, status: int, sentence: str, more: list[tuple[bytes, bytes]] | None = None) -> None:
        """Answers where no app does, unless an answer is under way, and ends the connection."""
        self.is_refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error_body(sentence)
            headers = [*body_headers(body), *SECURITY_HEADERS, *(more or []), (b"connection", b"close")]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _is_still_sending(self) -> bool:
        return self.is_refused or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)


class _Lingering:
    """A transport that does not close on a client that is still sending until it has had a moment to read the answer.

    A socket that is closed with bytes unread resets the connection, and the reset takes the answer away from the client.
    """

    def __init__(
        self, transport: asyncio.Transport, is_still_sending: Callable[[], bool], seconds: float, loop: asyncio.AbstractEventLoop
    ):
        self._transport, self._is_still_sending, self._seconds, self._loop = transport, is_still_sending, seconds, loop
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
        self._transport.resume_reading()  # reading may be paused, and its end would not be seen
        with contextlib.suppress(OSError):  # the client has left meanwhile
            self._transport.write_eof()
        self._loop.call_later(self._seconds, self._transport.abort)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    """Stops a timer, if there is one; gives the None that stands for no timer."""
    if timer is not None:
        timer.cancel()
