"""The doors of a local web application: who may ask, how much may be sent, what every answer and every log line says.

    app = guarded(app, hosts=["studio.example"], limits={"/api/pictures": 8 * 1024 * 1024})

Each guard is plain ASGI around the next, sees only "http" scopes and refuses with `{"error": sentence, "field": null}`.
What belongs to a connection rather than to a request (headers that never end, connections without number) is in
studio/connections.py. Left out: who the user is (whoever reaches the port may draw), TLS, and rates per client.
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

from studio.hosts import allowed_name, host_and_port, is_origin_of

LOGGER = logging.getLogger("studio")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
BODY_LIMIT = 64 * 1024  # bytes; room for a prompt and a grid of words
BODY_SECONDS = 20.0  # that a body may be waited for, all its pauses together
LONGEST_PATH = 200  # characters of a path in a log line
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
GONE = 499  # nginx's number for a client that left before an answer began
WENT_WRONG = (
    "something went wrong here, not with your request. What it was stands in the studio's log; ask again, and if it "
    "happens again, restart the studio"
)
Problem = tuple[int, str]  # the status of a refusal and its sentence


def guarded(
    app: ASGIApp,
    hosts: Iterable[str] = (),
    limits: Mapping[str, int] | None = None,
    log: Callable[[str], None] = LOGGER.info,
    body_limit: int = BODY_LIMIT,
    body_seconds: float = BODY_SECONDS,
) -> ASGIApp:
    """`app` behind all guards: it is given what they let through, and nothing leaves it or is logged but through them.

    hosts: names to be reached by besides 127.0.0.1, localhost and [::1], without a port; UserError for what is no name.
    limits: a path -> the bytes its body may have, where `body_limit` is too few.
    log: is handed a line per request, and a text whose lines all begin with "| " per unexpected exception.
    WebSockets are refused, and no guard stands before "lifespan".
    """
    inner: ASGIApp = Bodies(app, limits or {}, body_limit, body_seconds)
    inner = Hosts(Origins(inner), hosts)
    inner = RequestLines(ResponseHeaders(Failures(inner, log)), log)

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await inner(scope, receive, send)
        elif scope["type"] == "lifespan":
            await app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    return door


class Hosts:
    """Lets requests in that name an allowed host, so that no foreign name that resolves to here (DNS rebinding) reads."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()):
        self.app = app
        self.allowed = {allowed_name(host) for host in (*LOCAL_HOSTS, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await pass_or_refuse(self.problem(scope), self.app, scope, receive, send)

    def problem(self, scope: Scope) -> Problem | None:
        found = header(scope, b"host")
        if len(found) != 1 or not found[0]:
            return 400, f"a request needs one Host header, this one has {len([host for host in found if host])}"
        if not scope["path"].startswith("/"):  # "GET http://evil/ HTTP/1.1" would name a host besides Host
            return 400, "the target of a request is a path that begins with /; leave out the scheme and the host"
        host = host_and_port(found[0])
        if host is None or host[0] not in self.allowed:
            return 403, "this host is not one that the studio answers for; use localhost, or start it with this name allowed"
        return None


class Origins:
    """Refuses what pages of other origins send: any change, and any request under /api, which <img> could show them."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await pass_or_refuse(self.problem(scope), self.app, scope, receive, send)

    def problem(self, scope: Scope) -> Problem | None:
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        sites = {site.lower() for site in header(scope, b"sec-fetch-site")}
        foreign = bool(sites & {"cross-site", "same-site"})  # same-site: another port of this machine, so not the studio
        if changes and not all(is_origin_of(origin, header(scope, b"host")) for origin in header(scope, b"origin")):
            foreign = True
        if foreign and (changes or is_api(scope)):
            return 403, "this request comes from a page of another origin; use the studio's own page"
        return None


class Bodies:
    """Hands the app bodies that are plain, small enough and come in time; refuses the others as soon as it shows."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, int], limit: int = BODY_LIMIT, seconds: float = BODY_SECONDS):
        self.app, self.limits, self.limit, self.seconds = app, dict(limits), limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self.limits.get(scope["path"], self.limit)
        problem = self.problem(scope, limit)
        if problem:
            return await refuse(send, *problem)
        body = _Body(receive, send, limit, self.seconds)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if not body.is_refused:  # else it is how the app takes the disconnect that it was told of
                raise

    @staticmethod
    def problem(scope: Scope, limit: int) -> Problem | None:
        """What is wrong with a body by its headers alone, before a byte of it is read."""
        codings = {coding.strip().lower() for value in header(scope, b"content-encoding") for coding in value.split(",")}
        if codings - {"", "identity"}:
            return 415, "a compressed body is not unpacked here; send it without Content-Encoding"
        lengths = set(header(scope, b"content-length"))
        if len(lengths) > 1 or not all(re.fullmatch("[0-9]+", length) for length in lengths):
            return 400, "Content-Length is not one whole number of bytes, 0 or more"
        if any(is_more(length, limit) for length in lengths):
            return too_large(limit)
        return None


class _Body:
    """One request's body on its way to the app: what is left of its bytes, and of the seconds it may be waited for."""

    def __init__(self, receive: Receive, send: Send, limit: int, seconds: float):
        self.from_client, self.to_client = receive, send
        self.limit, self.bytes_left = limit, limit
        self.seconds, self.seconds_left = seconds, seconds
        self.is_whole = self.is_refused = self.has_answer = False

    async def receive(self) -> Message:
        if self.is_refused:
            return {"type": "http.disconnect"}
        if self.is_whole:
            return await self.from_client()
        began = time.monotonic()
        try:
            async with asyncio.timeout(max(self.seconds_left, 0.0)):
                message = await self.from_client()
        except TimeoutError:
            return await self.refuse(408, f"the body did not come within {self.seconds:g} seconds; send the request again")
        self.seconds_left -= time.monotonic() - began  # only what the client took; the app may read as late as it likes
        self.bytes_left -= len(message.get("body", b""))
        self.is_whole = not message.get("more_body", False)
        if self.bytes_left < 0:
            return await self.refuse(*too_large(self.limit))
        return message

    async def refuse(self, status: int, sentence: str) -> Message:
        """Answers in the app's place, and gives what the app is told: that the client has gone."""
        self.is_refused = True
        if not self.has_answer:
            await refuse(self.to_client, status, sentence)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.has_answer = True
        if not self.is_refused:  # else the answer has been given, or is broken off
            await self.to_client(message)


class Failures:
    """Answers an unexpected exception with a 500 that tells nothing of it, and has its traceback logged.

    A 500 is held back until the app has ended: Starlette answers with one of its own and raises afterwards.
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
            return  # nobody is left to be answered, and nothing went wrong
        except Exception as error:
            self.log(quoted(error))
            if not has_begun:
                await refuse(send, 500, WENT_WRONG)
            return
        for message in held:
            await send(message)


class ResponseHeaders:
    """Puts the security headers on every response, in the place of the app's own; no CORS header passes.

    What /api answers is kept by no cache: prompts are private.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = [*SECURITY_HEADERS, *([(b"cache-control", b"no-store")] if is_api(scope) else [])]
        taken = {name for name, _ in ours}

        async def send_sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                theirs = [(name.lower(), value) for name, value in message.get("headers", [])]
                kept = [(name, value) for name, value in theirs if name not in taken and not name.startswith(b"access-control-")]
                message = {**message, "headers": [*kept, *ours]}
            await send(message)

        await self.app(scope, receive, send_sealed)


class RequestLines:
    """Logs a line per request when it has ended: "POST /api/draw 200 1.204 s"; never its query, which holds prompts."""

    def __init__(self, app: ASGIApp, log: Callable[[str], None]):
        self.app, self.log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, began = GONE, time.monotonic()

        async def send_noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        finally:
            name = f"{one_word(scope['method'])} {one_word(scope['path'])}"
            self.log(f"{name} {status} {time.monotonic() - began:.3f} s")


async def pass_or_refuse(problem: Problem | None, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Calls `app`, or refuses where there is a problem."""
    if problem:
        await refuse(send, *problem)
    else:
        await app(scope, receive, send)


async def refuse(send: Send, status: int, sentence: str) -> None:
    """A whole answer that says what is wrong and how to mend it; the connection ends, for nobody reads what is left of a body."""
    body = error_body(sentence)
    headers = [*body_headers(body), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(sentence: str) -> bytes:
    return json.dumps({"error": sentence, "field": None}, ensure_ascii=False).encode()


def body_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]


def header(scope: Scope, name: bytes) -> list[str]:
    """All values of a header, as often as it was sent, without blanks around them."""
    return [value.decode("latin-1").strip(" \t") for key, value in scope["headers"] if key.lower() == name]


def is_api(scope: Scope) -> bool:
    return scope["path"] == "/api" or scope["path"].startswith("/api/")


def is_more(digits: str, limit: int) -> bool:
    """Whether a number written in any count of digits is above `limit`; Python's int refuses 5,000 of them."""
    digits = digits.lstrip("0")
    return len(digits) > 18 or int(digits or "0") > limit


def too_large(limit: int) -> Problem:
    return 413, f"the body has more than the {limit} bytes that are read here; send less"


def one_word(text: str) -> str:
    """`text` as one word of a log line, cut where it is long: "/a b\\r\\n" -> "/a%20b%0D%0A"."""
    return quote(text[:LONGEST_PATH], safe="/:", errors="replace") + ("..." if len(text) > LONGEST_PATH else "")


def quoted(error: Exception) -> str:
    """A traceback of which each line begins with "| ", so that none of what it quotes passes for a request's line."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join("| " + "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in line) for line in lines)
