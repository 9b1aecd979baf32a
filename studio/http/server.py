"""A web server on one socket: uvicorn with its own limits, the guards, and a log without prompts."""

import logging
import socket
from collections.abc import Iterable, Mapping

import uvicorn
from starlette.types import ASGIApp

from studio.http.middleware import Guards
from thousandwords.core.errors import UserError

MAX_CONNECTIONS = 512  # further requests get a 503
MAX_HEADER_BYTES = 16 * 1024
KEEP_ALIVE_SECONDS = 5  # that a connection is kept without a next request
SHUTDOWN_SECONDS = 3  # that unfinished answers have when the server ends


def new_server(
    app: ASGIApp, hosts: Iterable[str] = (), limits: Mapping[str, int] | None = None
) -> uvicorn.Server:
    """`hosts` and `limits` as for `Guards`. Run it on a socket: new_server(app).run(sockets=[listener])"""
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
        raise UserError(
            f"{name} cannot listen at {host}:{port}: {error}. "
            "Give another --port, or stop the program that uses this one"
        ) from error
