"""The studio's server on a real socket: slow clients, many clients, and bodies without end, while others are served."""
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
from pathlib import Path

import psutil
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from studio.connections import Protocol
from studio.doors import guarded

ROOT = Path(__file__).parent.parent
PATIENCE = 10  # seconds until a test gives up; none waits that long where all is well


class Hasty(Protocol):
    header_seconds = 0.3
    write_seconds = 0.3


class Few(Protocol):
    most_connections = 3


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def deaf(request: Request) -> Response:
    return Response(b"whatever")


async def late(request: Request) -> Response:
    await asyncio.sleep(0.1)
    return Response(b"whatever")


async def flood(request: Request) -> Response:
    async def pieces():
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)  # sending to a client that has left waits for nothing

    return StreamingResponse(pieces())


def app(log=lambda line: None):
    posted = [Route("/deaf", deaf, methods=["POST"]), Route("/late", late, methods=["POST"])]
    routes = [Route("/", echo, methods=["GET", "POST"]), *posted, Route("/flood", flood)]
    return guarded(Starlette(routes=routes), body_seconds=0.3, log=log)


@contextmanager
def serving(protocol=Hasty, keep_alive=1, **settings):
    """A server in a thread; gives its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app(**settings), http=protocol, log_config=None, timeout_keep_alive=keep_alive))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_to_end(client: socket.socket) -> tuple[int | None, dict, bytes]:
    """(status, headers by name, body) of the one answer on a connection that is then closed; (None, {}, b"") without one."""
    got = b""
    while piece := client.recv(65536):
        got += piece
    if not got:
        return None, {}, b""
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def read_until(client: socket.socket, end: bytes) -> bytes:
    """What comes on a connection that stays open, to some bytes."""
    got = b""
    while not got.endswith(end):
        piece = client.recv(65536)
        assert piece, f"closed after {got}"
        got += piece
    return got


def error_of(body: bytes) -> str:
    told = json.loads(body)
    assert set(told) == {"error", "field"} and told["field"] is None
    return told["error"]


def talk(port: int, sent: bytes):
    """What comes for some bytes, read until the server closes."""
    with connect(port) as client:
        client.sendall(sent)
        return read_to_end(client)


def is_served(port: int) -> bool:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    return talk(port, head + b"hi")[::2] == (200, b"hi")


def send_until_closed(client: socket.socket, piece: bytes) -> int:
    """Sends a piece over and over; gives the bytes that went out before the connection was gone."""
    sent, end = 0, time.monotonic() + PATIENCE
    try:
        while time.monotonic() < end:
            sent += client.send(piece)
        pytest.fail(f"still open after {sent} bytes")
    except (BrokenPipeError, ConnectionResetError):
        return sent


# --- slow clients


def test_others_are_served_while_a_hundred_send_no_end_of_headers(port):
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(port)) for _ in range(100)]
        for client in slow:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow:")
        assert is_served(port)
        for client in slow:
            status, headers, body = read_to_end(client)
            assert status == 408 and headers["connection"] == "close"
            assert error_of(body) == "the headers did not come within 0.3 seconds; send the request again"


def test_headers_that_drip_are_not_waited_for(port):
    with connect(port) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for _ in range(PATIENCE * 50):
            client.sendall(b"x")
            time.sleep(0.02)


def test_a_connection_that_asks_nothing_is_closed_without_a_word(port):
    assert talk(port, b"") == (None, {}, b"")


def test_a_kept_connection_serves_on_and_its_next_headers_are_watched_too():
    with serving(keep_alive=PATIENCE) as port, connect(port) as client:
        for _ in range(2):
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
            assert read_until(client, b"\r\n\r\nhi").startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # longer than headers may take, shorter than a connection is kept
        client.sendall(b"GET / HT")
        assert read_to_end(client)[0] == 408


def test_a_kept_connection_that_asks_no_more_is_closed(port):
    with connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
        assert read_to_end(client)[::2] == (200, b"hi")


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"])
def test_a_body_that_stops_coming_is_not_waited_for(port, framing):
    status, headers, body = talk(port, b"POST / HTTP/1.1\r\nHost: localhost\r\n" + framing)
    assert status == 408
    assert error_of(body) == "the body did not come within 0.3 seconds; send the request again"


def test_a_body_that_drips_is_not_waited_for(port):
    with connect(port) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n")
        for _ in range(PATIENCE * 50):
            client.sendall(b"x")
            time.sleep(0.02)


def test_a_client_that_does_not_read_its_answer_is_cut_off(port):
    with connect(port) as client:
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.1)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(PATIENCE * 50):
                time.sleep(0.02)
                client.sendall(b"x")


# --- many clients


def test_one_connection_too_many_is_told_when_to_come_again_and_the_others_stay():
    with serving(Few) as port, ExitStack() as stack:
        first = stack.enter_context(connect(port))
        for _ in range(2):
            stack.enter_context(connect(port))
        status, headers, body = talk(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "5", "close")
        assert headers["x-content-type-options"] == "nosniff"
        assert error_of(body) == "3 connections are open, as many as may be; try again in 5 seconds"
        first.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
        assert read_until(first, b"\r\n\r\nhi").startswith(b"HTTP/1.1 200")


def test_places_of_connections_that_have_ended_are_free_again():
    with serving(Few) as port:
        for _ in range(3):
            connect(port).close()
        for _ in range(5):
            assert talk_until(port, 200)


def talk_until(port: int, status: int) -> bool:
    """Whether an answer has that status in the end; the server sees ends of connections when it comes to it."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return any(talk(port, request)[0] == status for _ in range(100))


# --- what is sent


EVIL = {
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


@pytest.mark.parametrize("sent", EVIL, ids=lambda sent: sent[:40].decode("latin-1"))
def test_evil_requests_are_told_off_in_json_with_the_security_headers(port, sent):
    status, headers, body = talk(port, sent)
    assert status == EVIL[sent]
    assert error_of(body)
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["connection"] == "close"
    assert is_served(port)


def test_an_app_that_answers_a_request_refused_meanwhile_speaks_to_nobody():
    lines = []
    with serving(log=lines.append) as port, connect(port) as client:
        client.sendall(b"POST /late HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert read_to_end(client)[0] == 400
        while not lines:
            time.sleep(0.01)
    assert [line.split()[:2] for line in lines] == [["POST", "/late"]], "and no traceback"


def test_a_websocket_is_not_opened(port):
    asked = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
    keys = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    assert talk(port, asked + keys)[0] == 200


def test_two_hundred_megabytes_are_refused_when_they_are_announced(port):
    status, headers, body = talk(port, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n")
    assert (status, headers["connection"]) == (413, "close")
    assert error_of(body) == "the body has more than the 65536 bytes that are read here; send less"


def test_a_client_that_sends_all_before_it_reads_is_told_too(port):
    """The connection would be reset, and the answer lost, if it were closed on what the client had sent meanwhile."""
    with connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9000000\r\n\r\n")
        client.sendall(b"x" * 9_000_000)
        assert read_to_end(client)[0] == 413


def test_a_gzip_bomb_is_not_unpacked(port):
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    status, _, body = talk(port, head + bomb)
    assert status == 415
    assert error_of(body) == "a compressed body is not unpacked here; send it without Content-Encoding"


def test_an_endless_body_that_the_app_does_not_read_ends_with_the_answer(port):
    with connect(port) as client:
        client.sendall(b"POST /deaf HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        send_until_closed(client, b"10000\r\n" + b"x" * 65536 + b"\r\n")
    assert is_served(port)


SERVER = """
import uvicorn
from tests.test_studio_connections import Hasty, app, socket
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app(), http=Hasty, log_config=None)).run(sockets=[listening])
"""


@contextmanager
def serving_alone():
    """A server in a process of its own; gives its port and the process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        try:
            yield int(process.stdout.readline()), psutil.Process(process.pid)
        finally:
            process.kill()


def test_chunks_without_end_are_refused_soon_and_held_nowhere():
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with serving_alone() as (port, process):
        assert is_served(port)  # all is loaded by now
        before = process.memory_info().rss
        for path in (b"/", b"/deaf", b"/nowhere"):
            with connect(port) as client:
                client.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
                send_until_closed(client, chunk)
        grown = process.memory_info().rss - before
        assert is_served(port)
    assert grown <= 5_000_000, f"{grown} bytes more"
