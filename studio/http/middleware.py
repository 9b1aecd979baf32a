"""ASGI middleware for a local web application: host and origin checks, body limits, security headers, log.

    app = with_middleware(app, hosts=["studio.example"], limits={"/api/images": 8 * 1024 * 1024})

Each class wraps the next ASGI app, sees "http" scopes only and rejects a request with
`{"error": message, "field": null}`. Limits of a connection (endless headers, number of connections) are in
studio/http/protocol.py. Left out: authentication (everyone who reaches the port can generate images), TLS,
and rate limits per client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.http.host_header import allowed_name, host_and_port, is_origin_of

LOGGER = logging.getLogger("studio")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
BODY_LIMIT = 64 * 1024  # bytes; enough for a prompt and a grid of tokens
BODY_SECONDS = 20.0  # to receive a body, all its pauses together
MAX_LOGGED_PATH = 200  # characters of a path in a log line
SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
CLIENT_CLOSED = 499  # nginx's status for a client that left before an answer began
INTERNAL_ERROR = (
    "the server failed; your request is not the cause. The reason is in the studio's log. Try again, "
    "and if it fails again, restart the studio"
)
Rejection = tuple[int, str]  # status and message


def with_middleware(
    app: ASGIApp,
    hosts: Iterable[str] = (),
    limits: Mapping[str, int] | None = None,
    log: Callable[[str], None] = LOGGER.info,
    body_limit: int = BODY_LIMIT,
    body_seconds: float = BODY_SECONDS,
) -> ASGIApp:
    """Wrap `app` in all middleware of this file.

    hosts: allowed host names besides 127.0.0.1, localhost and [::1], without a port; UserError if invalid.
    limits: path -> maximum bytes of its body, for paths that need more than `body_limit`.
    log: gets one line per request, and for an unexpected exception a text whose lines all begin with "| ".
    WebSockets are rejected; "lifespan" is passed to the app directly.
    """
    http_app: ASGIApp = BodyLimits(app, limits or {}, body_limit, body_seconds)
    http_app = HostCheck(OriginCheck(http_app), hosts)
    http_app = RequestLog(ResponseHeaders(ExceptionHandler(http_app, log)), log)

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await http_app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    return wrapped


class HostCheck:
    """Rejects requests to other hosts, such as foreign names that resolve to here (DNS rebinding)."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()):
        self.app = app
        self.allowed = {allowed_name(host) for host in (*LOCAL_HOSTS, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await pass_or_reject(self.rejection(scope), self.app, scope, receive, send)

    def rejection(self, scope: Scope) -> Rejection | None:
        hosts = header(scope, b"host")
        if len(hosts) != 1 or not hosts[0]:
            count = len([host for host in hosts if host])
            return 400, f"a request needs exactly one Host header, this one has {count}"
        if not scope["path"].startswith("/"):  # "GET http://evil/ HTTP/1.1" would name a host besides Host
            return (
                400,
                "the target of a request must be a path that begins with /; "
                "leave out the scheme and the host",
            )
        host = host_and_port(hosts[0])
        if host is None or host[0] not in self.allowed:
            return (
                403,
                "the studio does not answer to this host name; "
                "use localhost, or start it with --allowed-host",
            )
        return None


class OriginCheck:
    """Rejects requests from pages of other origins: all changes, and all of /api, which <img> could show."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await pass_or_reject(self.rejection(scope), self.app, scope, receive, send)

    def rejection(self, scope: Scope) -> Rejection | None:
        is_change = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        sites = {site.lower() for site in header(scope, b"sec-fetch-site")}
        # same-site: another port of this machine, so not the studio
        is_foreign = bool(sites & {"cross-site", "same-site"})
        hosts = header(scope, b"host")
        if is_change and not all(is_origin_of(origin, hosts) for origin in header(scope, b"origin")):
            is_foreign = True
        if is_foreign and (is_change or is_api(scope)):
            return 403, "this request comes from a page of another origin; use the studio's own page"
        return None


class BodyLimits:
    """Rejects bodies that are compressed, too large or too slow, as early as possible."""

    def __init__(
        self, app: ASGIApp, limits: Mapping[str, int], limit: int = BODY_LIMIT, seconds: float = BODY_SECONDS
    ):
        self.app, self.limits, self.limit, self.seconds = app, dict(limits), limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self.limits.get(scope["path"], self.limit)
        rejection = self.rejection(scope, limit)
        if rejection:
            return await send_error(send, *rejection)
        body = _LimitedBody(receive, send, limit, self.seconds)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if not body.is_rejected:  # else it is the app's reaction to the disconnect that it received
                raise

    @staticmethod
    def rejection(scope: Scope, limit: int) -> Rejection | None:
        """Check a body by its headers, before any of it is read."""
        codings = {
            coding.strip().lower()
            for value in header(scope, b"content-encoding")
            for coding in value.split(",")
        }
        if codings - {"", "identity"}:
            return 415, "compressed bodies are not accepted; send it without Content-Encoding"
        lengths = set(header(scope, b"content-length"))
        if len(lengths) > 1 or not all(re.fullmatch("[0-9]+", length) for length in lengths):
            return 400, "Content-Length is not one whole number of bytes, 0 or more"
        if any(is_above(length, limit) for length in lengths):
            return too_large(limit)
        return None


class _LimitedBody:
    """The body of one request on its way to the app, with the bytes and seconds that are left for it."""

    def __init__(self, receive: Receive, send: Send, limit: int, seconds: float):
        self.from_client, self.to_client = receive, send
        self.limit, self.bytes_left = limit, limit
        self.seconds, self.seconds_left = seconds, seconds
        self.is_complete = self.is_rejected = self.has_answer = False

    async def receive(self) -> Message:
        if self.is_rejected:
            return {"type": "http.disconnect"}
        if self.is_complete:
            return await self.from_client()
        started = time.monotonic()
        try:
            async with asyncio.timeout(max(self.seconds_left, 0.0)):
                message = await self.from_client()
        except TimeoutError:
            return await self.reject(
                408, f"the body did not arrive within {self.seconds:g} seconds; send the request again"
            )
        # only the client's time counts; the app may read as late as it likes
        self.seconds_left -= time.monotonic() - started
        self.bytes_left -= len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        if self.bytes_left < 0:
            return await self.reject(*too_large(self.limit))
        return message

    async def reject(self, status: int, message: str) -> Message:
        """Send an error instead of the app's answer; for the app, the client has disconnected."""
        self.is_rejected = True
        if not self.has_answer:
            await send_error(self.to_client, status, message)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.has_answer = True
        if not self.is_rejected:  # else the client has its answer, or the answer is cut off
            await self.to_client(message)


class ExceptionHandler:
    """Answers an unexpected exception with a 500 that reveals nothing of it, and logs its traceback.

    A 500 is held back until the app has ended: Starlette sends one of its own and raises afterwards.
    """

    def __init__(self, app: ASGIApp, log: Callable[[str], None]):
        self.app, self.log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []
        has_begun = False

        async def send_or_hold(message: Message) -> None:
            nonlocal has_begun
            if held or message.get("status") == 500:
                held.append(message)
            else:
                has_begun = True
                await send(message)

        try:
            await self.app(scope, receive, send_or_hold)
        except ClientDisconnect:
            return  # no client is left, and this is no error
        except Exception as error:
            self.log(quote_traceback(error))
            if not has_begun:
                await send_error(send, 500, INTERNAL_ERROR)
            return
        for message in held:
            await send(message)


class ResponseHeaders:
    """Sets the security headers on every response in place of the app's own, and removes CORS headers.

    Answers under /api must not be cached: prompts are private.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        added = [*SECURITY_HEADERS, *([(b"cache-control", b"no-store")] if is_api(scope) else [])]
        added_names = {name for name, _ in added}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                app_headers = [(name.lower(), value) for name, value in message.get("headers", [])]
                passed = [
                    (name, value)
                    for name, value in app_headers
                    if name not in added_names and not name.startswith(b"access-control-")
                ]
                message = {**message, "headers": [*passed, *added]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


class RequestLog:
    """Logs a line per request: "POST /api/generate 200 1.204 s"; never the query, which holds prompts."""

    def __init__(self, app: ASGIApp, log: Callable[[str], None]):
        self.app, self.log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, started = CLIENT_CLOSED, time.monotonic()

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        finally:
            name = f"{as_log_word(scope['method'])} {as_log_word(scope['path'])}"
            self.log(f"{name} {status} {time.monotonic() - started:.3f} s")


async def pass_or_reject(
    rejection: Rejection | None, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Call `app`, or send the error of a rejection."""
    if rejection:
        await send_error(send, *rejection)
    else:
        await app(scope, receive, send)


async def send_error(send: Send, status: int, message: str) -> None:
    """Send a complete error answer; the connection ends, because the rest of the body is not read."""
    body = error_body(message)
    headers = [*body_headers(body), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(message: str) -> bytes:
    return json.dumps({"error": message, "field": None}, ensure_ascii=False).encode()


def body_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]


def header(scope: Scope, name: bytes) -> list[str]:
    """All values of a header, in the order in which they were sent, without surrounding blanks."""
    return [value.decode("latin-1").strip(" \t") for key, value in scope["headers"] if key.lower() == name]


def is_api(scope: Scope) -> bool:
    return scope["path"] == "/api" or scope["path"].startswith("/api/")


def is_above(digits: str, limit: int) -> bool:
    """Whether a number is above `limit`, however many digits it has; Python's int rejects 5,000 of them."""
    digits = digits.lstrip("0")
    return len(digits) > 18 or int(digits or "0") > limit


def too_large(limit: int) -> Rejection:
    return 413, f"the body has more than {limit} bytes, the maximum here; send less"


def as_log_word(text: str) -> str:
    """`text` as one word of a log line, cut if it is long: "/a b\\r\\n" -> "/a%20b%0D%0A"."""
    quoted = quote(text[:MAX_LOGGED_PATH], safe="/:", errors="replace")
    return quoted + ("..." if len(text) > MAX_LOGGED_PATH else "")


def quote_traceback(error: Exception) -> str:
    """A traceback with "| " before each line, so that no line in it can look like a request's line."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(
        "| " + "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in line)
        for line in lines
    )
