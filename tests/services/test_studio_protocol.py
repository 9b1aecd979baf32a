"""The studio's server on a real socket: malformed requests, endless bodies, slow and many clients."""

import contextlib
import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from fastapi import FastAPI, Request, Response

from studio.api.errors import add_error_handlers
from studio.http import server

TIMEOUT = 10  # seconds until a test fails; none takes that long otherwise
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


def app() -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)

    @app.api_route("/", methods=["GET", "POST"])
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    @app.post("/ignore-body")
    async def ignore_body() -> Response:
        return Response(b"whatever")

    return app


@contextmanager
def serving(max_connections: int = server.MAX_CONNECTIONS):
    """Run a server in a thread; yields its port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "DROP_SECONDS", 0.3)
        patch.setattr(server, "KEEP_ALIVE_SECONDS", 1)
        patch.setattr(server, "MAX_CONNECTIONS", max_connections)
        with server.open_socket("the test", "127.0.0.1", 0) as listener:
            running = server.new_server(app())
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
            thread.start()
            yield listener.getsockname()[1]
            running.should_exit = True
            thread.join(TIMEOUT)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)


def read_to_end(client: socket.socket) -> tuple[int, dict, bytes]:
    """(status, headers by name, body) of the last answer on a connection."""
    received = b""
    while piece := client.recv(65536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def talk(port: int, sent: bytes) -> tuple[int, dict, bytes]:
    """The answer to some bytes, read until the server closes the connection."""
    with connect(port) as client:
        client.sendall(sent)
        return read_to_end(client)


def is_served(port: int) -> bool:
    return talk(port, HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi")[::2] == (200, b"hi")


UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
)
MALICIOUS = {
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + b"A" * 22 + b"==\r\n\r\n": 200,  # no 101
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n": 403,
    b"GET / HTTP/1.1\r\n\r\n": 400,
    b"GET / HTTP/1.0\r\n\r\n": 403,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n": 400,
    b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n": 404,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n": 400,
    HEAD + b"Content-Length: -1\r\n\r\n": 400,
    HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n": 400,
    HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n": 400,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n": 400,
    HEAD + b"Origin: http://evil\r\nContent-Length: 99999\r\n\r\n": 403,
    HEAD + b"Content-Length: 200000000\r\n\r\n": 413,
}


@pytest.mark.parametrize("sent", MALICIOUS, ids=lambda sent: sent[:40].decode("latin-1"))
def test_malicious_requests_are_rejected_at_once(port, sent):
    began = time.monotonic()
    with connect(port) as client:
        with contextlib.suppress(ConnectionError):  # the answer may come before all has been sent
            client.sendall(sent)
        status = int(client.recv(65536).split()[1])
    assert status == MALICIOUS[sent]
    assert time.monotonic() - began < 1
    assert is_served(port)


def test_a_client_that_sends_all_before_it_reads_gets_the_error_too(port):
    """Closing a connection with unread bytes would reset it, and the client would lose the answer."""
    status, headers, body = talk(port, HEAD + b"Content-Length: 9000000\r\n\r\n" + b"x" * 9_000_000)
    assert (status, headers["connection"]) == (413, "close")
    error = "the body has more than 65536 bytes, the maximum here; send less"
    assert json.loads(body) == {"error": error, "field": None}


def test_endless_bodies_are_ended_and_not_kept_in_memory(port):
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert is_served(port)  # all modules are loaded
    before = psutil.Process().memory_info().rss
    for path in (b"/", b"/ignore-body", b"/nowhere"):
        with connect(port) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(HEAD.replace(b"/", path, 1) + b"Transfer-Encoding: chunked\r\n\r\n")
            end = time.monotonic() + TIMEOUT
            while time.monotonic() < end:
                client.sendall(chunk)
    grown = psutil.Process().memory_info().rss - before
    assert is_served(port)
    assert grown <= 5_000_000, f"{grown} bytes more"


def test_others_are_served_while_a_hundred_clients_never_end_their_headers_or_bodies(port):
    with ExitStack() as stack:
        for number in range(100):
            unfinished = b"X-Slow:" if number % 2 else b"Content-Length: 100\r\n\r\nx"
            stack.enter_context(connect(port)).sendall(HEAD + unfinished)
        assert is_served(port)


def test_one_connection_too_many_is_rejected_and_the_others_stay():
    with serving(max_connections=4) as port:
        with ExitStack() as stack:
            first, *_ = [stack.enter_context(connect(port)) for _ in range(3)]
            assert talk(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 503
            first.sendall(HEAD + b"Content-Length: 2\r\n\r\nhi")
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
        end = time.monotonic() + TIMEOUT
        while not is_served(port):
            assert time.monotonic() < end, "connections that have ended are counted"


def test_a_kept_connection_without_a_next_request_is_closed(port):
    assert talk(port, HEAD + b"Content-Length: 2\r\n\r\nhi")[::2] == (200, b"hi")
