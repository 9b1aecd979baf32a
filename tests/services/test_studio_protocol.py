"""The studio's server on a real socket: slow clients, many clients, endless bodies."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import psutil
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from studio.http.middleware import with_middleware
from studio.http.protocol import Protocol
from tests.helpers.paths import ROOT

TIMEOUT = 10  # seconds until a test fails; none takes that long otherwise


class ShortTimeouts(Protocol):
    header_seconds = 0.3
    write_seconds = 0.3


class FewConnections(Protocol):
    max_connections = 3


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def ignore_body(request: Request) -> Response:
    return Response(b"whatever")


async def slow(request: Request) -> Response:
    await asyncio.sleep(0.1)
    return Response(b"whatever")


async def endless(request: Request) -> Response:
    async def pieces():
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)  # sending to a client that has left does not wait

    return StreamingResponse(pieces())


def app(log=lambda line: None):
    post_routes = [
        Route("/ignore-body", ignore_body, methods=["POST"]),
        Route("/slow", slow, methods=["POST"]),
    ]
    routes = [Route("/", echo, methods=["GET", "POST"]), *post_routes, Route("/endless", endless)]
    return with_middleware(Starlette(routes=routes), body_seconds=0.3, log=log)


@contextmanager
def serving(protocol=ShortTimeouts, keep_alive=1, **settings):
    """Run a server in a thread; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app(**settings), http=protocol, log_config=None, timeout_keep_alive=keep_alive)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)


def read_to_end(client: socket.socket) -> tuple[int | None, dict, bytes]:
    """(status, headers by name, body) of the last answer on a connection; (None, {}, b"") without one."""
    received = b""
    while piece := client.recv(65536):
        received += piece
    if not received:
        return None, {}, b""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Read from a connection that stays open, up to the bytes `end`."""
    received = b""
    while not received.endswith(end):
        piece = client.recv(65536)
        assert piece, f"closed after {received}"
        received += piece
    return received


def error_of(body: bytes) -> str:
    answer = json.loads(body)
    assert set(answer) == {"error", "field"} and answer["field"] is None
    return answer["error"]


def talk(port: int, sent: bytes):
    """The answer to some bytes, read until the server closes the connection."""
    with connect(port) as client:
        client.sendall(sent)
        return read_to_end(client)


def is_served(port: int) -> bool:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    return talk(port, head + b"hi")[::2] == (200, b"hi")


def send_until_closed(client: socket.socket, piece: bytes) -> int:
    """Send a piece again and again; returns the bytes sent until the server closed the connection."""
    sent, end = 0, time.monotonic() + TIMEOUT
    try:
        while time.monotonic() < end:
            sent += client.send(piece)
        pytest.fail(f"still open after {sent} bytes")
    except (BrokenPipeError, ConnectionResetError):
        return sent


# --- slow clients


def test_others_are_served_while_a_hundred_clients_never_end_their_headers(port):
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(port)) for _ in range(100)]
        for client in slow:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow:")
        assert is_served(port)
        for client in slow:
            status, headers, body = read_to_end(client)
            assert status == 408 and headers["connection"] == "close"
            assert error_of(body) == "the headers did not arrive within 0.3 seconds; send the request again"


def test_headers_that_arrive_byte_by_byte_time_out(port):
    with connect(port) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for _ in range(TIMEOUT * 50):
            client.sendall(b"x")
            time.sleep(0.02)


def test_a_connection_without_a_request_is_closed_without_an_answer(port):
    assert talk(port, b"") == (None, {}, b"")


def test_a_kept_connection_is_served_again_and_its_next_headers_time_out_too():
    with serving(keep_alive=TIMEOUT) as port, connect(port) as client:
        for _ in range(2):
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
            assert read_until(client, b"\r\n\r\nhi").startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # longer than headers may take, shorter than a connection is kept
        client.sendall(b"GET / HT")
        assert read_to_end(client)[0] == 408


def test_a_kept_connection_without_a_next_request_is_closed(port):
    with connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
        assert read_to_end(client)[::2] == (200, b"hi")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"]
)
def test_a_body_that_stops_arriving_times_out(port, framing):
    status, headers, body = talk(port, b"POST / HTTP/1.1\r\nHost: localhost\r\n" + framing)
    assert status == 408
    assert error_of(body) == "the body did not arrive within 0.3 seconds; send the request again"


def test_a_body_that_arrives_byte_by_byte_times_out(port):
    with connect(port) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n")
        for _ in range(TIMEOUT * 50):
            client.sendall(b"x")
            time.sleep(0.02)


def test_a_client_that_does_not_read_its_answer_is_disconnected(port):
    with connect(port) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.1)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(TIMEOUT * 50):
                time.sleep(0.02)
                client.sendall(b"x")


# --- many clients


def test_one_connection_too_many_gets_retry_after_and_the_others_stay():
    with serving(FewConnections) as port, ExitStack() as stack:
        first = stack.enter_context(connect(port))
        for _ in range(2):
            stack.enter_context(connect(port))
        status, headers, body = talk(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert headers["x-content-type-options"] == "nosniff"
        assert error_of(body) == "3 connections are open, which is the maximum; try again in 5 seconds"
        first.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
        assert read_until(first, b"\r\n\r\nhi").startswith(b"HTTP/1.1 200")


def test_connections_that_have_ended_are_not_counted():
    with serving(FewConnections) as port:
        for _ in range(3):
            connect(port).close()
        for _ in range(5):
            assert talk_until(port, 200)


def talk_until(port: int, status: int) -> bool:
    """Whether an answer gets that status in the end; the server notices closed connections with a delay."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return any(talk(port, request)[0] == status for _ in range(100))


# --- what is sent


MALICIOUS = {
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n": 403,
    b"GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n": 403,
    b"GET / HTTP/1.1\r\nHost: localhost@evil\r\n\r\n": 403,
    b"GET / HTTP/1.1\r\n\r\n": 400,
    b"GET / HTTP/1.0\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n": 400,
    b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n": 400,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil\r\nContent-Length: 99999\r\n\r\n": 403,
}


@pytest.mark.parametrize("sent", MALICIOUS, ids=lambda sent: sent[:40].decode("latin-1"))
def test_malicious_requests_get_a_json_error_with_the_security_headers(port, sent):
    status, headers, body = talk(port, sent)
    assert status == MALICIOUS[sent]
    assert error_of(body)
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["connection"] == "close"
    assert is_served(port)


def test_the_answer_of_an_app_to_a_request_that_was_rejected_meanwhile_is_dropped():
    lines = []
    with serving(log=lines.append) as port, connect(port) as client:
        client.sendall(b"POST /slow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert read_to_end(client)[0] == 400
        while not lines:
            time.sleep(0.01)
    assert [line.split()[:2] for line in lines] == [["POST", "/slow"]], "and no traceback"


def test_a_websocket_is_not_opened(port):
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
    keys = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    assert talk(port, head + keys)[0] == 200


def test_two_hundred_megabytes_are_rejected_by_their_content_length(port):
    status, headers, body = talk(
        port, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n"
    )
    assert (status, headers["connection"]) == (413, "close")
    assert error_of(body) == "the body has more than 65536 bytes, the maximum here; send less"


def test_a_client_that_sends_all_before_it_reads_gets_the_error_too(port):
    """Closing a connection with unread bytes would reset it, and the client would lose the answer."""
    with connect(port) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9000000\r\n\r\n"
        )
        client.sendall(b"x" * 9_000_000)
        assert read_to_end(client)[0] == 413


def test_a_gzip_bomb_is_not_decompressed(port):
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        % len(bomb)
    )
    status, _, body = talk(port, head + bomb)
    assert status == 415
    assert error_of(body) == "compressed bodies are not accepted; send it without Content-Encoding"


def test_an_endless_body_that_the_app_does_not_read_ends_with_the_answer(port):
    with connect(port) as client:
        client.sendall(b"POST /ignore-body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        send_until_closed(client, b"10000\r\n" + b"x" * 65536 + b"\r\n")
    assert is_served(port)


SERVER = """
import socket
import uvicorn
from tests.services.test_studio_protocol import ShortTimeouts, app
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app(), http=ShortTimeouts, log_config=None)).run(sockets=[listener])
"""


@contextmanager
def server_process():
    """Run a server in its own process; yields its port and the process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    ) as process:
        try:
            yield int(process.stdout.readline()), psutil.Process(process.pid)
        finally:
            process.kill()


def test_endless_chunks_are_rejected_soon_and_not_kept_in_memory():
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with server_process() as (port, process):
        assert is_served(port)  # all modules are loaded
        before = process.memory_info().rss
        for path in (b"/", b"/ignore-body", b"/nowhere"):
            with connect(port) as client:
                client.sendall(
                    b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                send_until_closed(client, chunk)
        grown = process.memory_info().rss - before
        assert is_served(port)
    assert grown <= 5_000_000, f"{grown} bytes more"
