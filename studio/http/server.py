"""A web server on one socket: uvicorn with its own limits, a log without prompts, and guards.

The guards check hosts, origins and the size of bodies, and set security headers. Left out: authentication (everyone
who reaches the port can generate images), TLS, slow clients and rate limits; a proxy has them (docs/studio.md).
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
from collections.abc import Iterable, Mapping

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thousandwords.core.errors import UserError

MAX_CONNECTIONS = 512  # further requests get a 503
MAX_HEADER_BYTES = 16 * 1024
KEEP_ALIVE_SECONDS = 5  # that a connection is kept without a next request
SHUTDOWN_SECONDS = 3  # that unfinished answers have when the server ends
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
BODY_LIMIT = 64 * 1024  # bytes; enough for a prompt and a grid of tokens
DROP_SECONDS = 5.0  # for which an unread body is received, so that its client can read the answer
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; "
    "script-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
Refusal = tuple[int, str]  # status and message
# it may resolve to here (DNS rebinding); Starlette's TrustedHostMiddleware answers in plain text, without a remedy
FOREIGN_HOST = "this server does not answer to this host name; use localhost, or start it with --allowed-host"


class Guards:
    """Wraps an ASGI app; a refused request gets `{"error": message, "field": null}`.

    hosts: allowed host names besides those of this machine, without a port; UserError if invalid.
    limits: path -> maximum bytes of its body, for paths that need more than BODY_LIMIT.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = (), limits: Mapping[str, int] | None = None):
        self.app, self.limits = app, limits or {}
        self.hosts = {*LOCAL_HOSTS, *map(allowed_host, hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, limit = Headers(scope=scope), self.limits.get(scope["path"], BODY_LIMIT)
        connection = _Connection(scope, headers, receive, send)
        app = RequestBodyLimitMiddleware(self.app, limit)
        host_refusal = None if name_of(headers.get("host", "")) in self.hosts else (403, FOREIGN_HOST)
        if refusal := host_refusal or refuse_origin(scope, headers) or refuse_body(headers, limit):
            app = JSONResponse({"error": refusal[1], "field": None}, refusal[0])
        await app(scope, connection.receive, connection.send)


class _Connection:
    """One request and its answer, which gets the security headers. A body that is not read ends with it."""

    def __init__(self, scope: Scope, headers: Headers, receive: Receive, send: Send):
        self.from_client, self.to_client = receive, send
        self.headers = SECURITY_HEADERS | ({"cache-control": "no-store"} if is_api(scope) else {})
        self.has_more_body = "content-length" in headers or "transfer-encoding" in headers

    async def receive(self) -> Message:
        message = await self.from_client()
        self.has_more_body = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=[*message.get("headers", [])])
            headers.update(self.headers)
            if self.has_more_body:
                headers["connection"] = "close"
            message = {**message, "headers": headers.raw}
        elif self.has_more_body and not message.get("more_body", False):
            await self.to_client({**message, "more_body": True})
            await self._drop_body()
            message = {"type": "http.response.body"}
        await self.to_client(message)

    async def _drop_body(self) -> None:
        """A socket that is closed with unread bytes resets the connection: the client loses the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DROP_SECONDS):
                while self.has_more_body:
                    await self.receive()


def refuse_origin(scope: Scope, headers: Headers) -> Refusal | None:
    """Pages of other origins can change nothing, and show nothing of /api, as <img> could."""
    is_change = scope["method"] not in ("GET", "HEAD", "OPTIONS")
    # same-site: another port of this machine
    is_foreign = headers.get("sec-fetch-site", "").lower() in ("cross-site", "same-site")
    if is_change:
        host = headers.get("host", "").lower()
        origins = {origin.lower() for origin in headers.getlist("origin")}
        is_foreign |= not origins <= {f"http://{host}", f"https://{host}"}
    if is_foreign and (is_change or is_api(scope)):
        return 403, "this request comes from a page of another origin; use the studio's own page"
    return None


def refuse_body(headers: Headers, limit: int) -> Refusal | None:
    """Refuse a body by its headers, before any of it is read."""
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        return 415, "compressed bodies are not accepted; send it without Content-Encoding"
    if int(headers.get("content-length", 0)) > limit:  # the server has checked that it is a number
        return 413, f"the body has more than {limit} bytes, the maximum here; send less"
    return None


def is_api(scope: Scope) -> bool:
    return scope["path"].startswith("/api/")


def name_of(host: str) -> str:
    """A Host header without its port: "LOCALHOST.:80" -> "localhost"."""
    return re.sub(r":[0-9]+$", "", host).lower().removesuffix(".")


def allowed_host(host: str) -> str:
    """The name as it stands in Host headers: "Studio.Example" -> "studio.example", "::1" -> "[::1]"."""
    with contextlib.suppress(ValueError):
        return f"[{ipaddress.IPv6Address(host.strip('[]'))}]"
    name = host.lower().removesuffix(".")
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
        raise UserError(
            f"allowed host {host!r} is not a name or an address; "
            "give it like studio.example, without scheme or port"
        )
    return name


def new_server(
    app: ASGIApp, hosts: Iterable[str] = (), limits: Mapping[str, int] | None = None
) -> uvicorn.Server:
    """`hosts` and `limits` as for `Guards`."""
    config = uvicorn.Config(
        Guards(app, hosts, limits),
        http="h11",  # the one with a limit for headers
        ws="none",
        log_config=None,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
        proxy_headers=False,
    )
    return uvicorn.Server(config)


def start_log() -> None:
    """Log a line per request to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").addFilter(without_query)


def without_query(record: logging.LogRecord) -> bool:
    """Cut the query, which holds prompts, from uvicorn's line for a request."""
    client, method, path, *rest = record.args
    record.args = (client, method, path.partition("?")[0], *rest)
    return True


def open_socket(name: str, host: str, port: int) -> socket.socket:
    """A listening socket for the server of that name. Raises UserError if the address cannot be used."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server((host, port), family=addresses[0][0], backlog=512)
    except (OSError, OverflowError) as error:
        fix = "Give another --port, or stop the program that uses this one"
        raise UserError(f"{name} cannot listen at {host}:{port}: {error}. {fix}") from error
