"""The studio's middleware: allowed hosts and origins, limits on bodies, headers of each answer, log lines."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.http.host_header import host_and_port
from studio.http.middleware import as_log_word, with_middleware
from thousandwords.core.errors import UserError

KIB = 1024


class Answer:
    """An answer of an ASGI app: `status` (None: no answer), `headers` by name, `body`, and `pieces_read`."""

    def __init__(self):
        self.status, self.headers, self.body, self.pieces_read = None, {}, b"", 0

    @property
    def error(self) -> str:
        answer = json.loads(self.body)
        assert set(answer) == {"error", "field"} and answer["field"] is None
        return answer["error"]


def ask(app, method="GET", path="/", headers=(), pieces=(b"",)) -> Answer:
    """Send one ASGI request. headers: (name, value) pairs; Host: localhost is the default. pieces: body."""
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    if not any(name == b"host" for name, _ in headers):
        headers.append((b"host", b"localhost"))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"prompt=secret",
        "headers": headers,
    }
    answer, remaining = Answer(), iter([*pieces])

    async def receive():
        try:
            piece = next(remaining)
        except StopIteration:
            await asyncio.Event().wait()
        answer.pieces_read += 1
        return {"type": "http.request", "body": piece, "more_body": piece != b""}

    async def send(message):
        if message["type"] == "http.response.start":
            answer.status, names = message["status"], [name for name, _ in message["headers"]]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            assert len(names) == len(answer.headers), f"a header is there twice in {names}"
        answer.body += message.get("body", b"")

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))  # an endless wait fails the test
    return answer


async def echo(request: Request) -> Response:
    return Response(
        await request.body(), headers={"Access-Control-Allow-Origin": "*", "Referrer-Policy": "unsafe-url"}
    )


def echoing(*, log=lambda line: None, **settings):
    """An app that answers with the body of the request, in the middleware."""
    routes = [
        Route(path, echo, methods=["GET", "POST", "DELETE", "OPTIONS"]) for path in ("/", "/{rest:path}")
    ]
    return with_middleware(Starlette(routes=routes), log=log, **settings)


def status_for_host(host: str, **settings) -> int:
    return ask(echoing(**settings), headers=[("Host", host)]).status


# --- hosts and origins


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST",
        "localhost.",
        "localhost.:1",
        "127.0.0.1",
        "127.0.0.1:65535",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "[0000::0001]:80",
    ],
)
def test_every_name_of_this_machine_is_allowed(host):
    assert status_for_host(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "169.254.169.254",
        "127.0.0.1@evil",
        "localhost@evil:80",
        "evil@localhost",
        "localhost.evil.example",
        "evil-localhost",
        "localhost:80:80",
        "localhost:",
        "localhost:x",
        "localhost:0",
        "localhost:65536",
        "localhost..",
        "localhost evil",
        "localhost,evil",
        "localhost/evil",
        "localhost#",
        "localhost\\evil",
        "http://localhost",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "0.0.0.0",
        "::1",
        "[::1",
        "[::1]evil",
        "[::1%eth0]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "[1:::2]",
        "local\xadhost",
        "%6cocalhost",
        "*",
        ".",
    ],
)
def test_any_other_host_is_rejected(host):
    answer = ask(echoing(), headers=[("Host", host)])
    assert answer.status == 403
    assert (
        answer.error
        == "the studio does not answer to this host name; use localhost, or start it with --allowed-host"
    )


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30))
def test_no_random_host_is_allowed(host):
    name = host.strip(" \t").lower()
    bare = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
    if bare.removesuffix(".") not in ("localhost", "127.0.0.1") and not bare.startswith("["):
        assert status_for_host(host) == (403 if name else 400)


@given(
    st.sampled_from(["localhost", "127.0.0.1", "[::1]", "studio.example"]),
    st.sampled_from("@.-_/\\#?:,;%[]"),
    st.text("abe.:@1", max_size=6),
)
def test_text_before_or_after_an_allowed_name_is_rejected(name, mark, rest):
    app = echoing(hosts=["studio.example"])
    assert ask(app, headers=[("Host", f"evil{mark}{name}")]).status == 403
    after = host_and_port(f"{name}{mark}{rest}")
    if after is None or after[0] != name.strip("[]"):
        assert ask(app, headers=[("Host", f"{name}{mark}{rest}")]).status == 403


def test_configured_hosts_are_allowed_besides_the_local_ones():
    allowed_hosts = ["Studio.Example.", "10.0.0.5", "fe80::5", "[fe80::6]"]
    for host in [
        "studio.example",
        "STUDIO.example:80",
        "10.0.0.5:8000",
        "[FE80::5]",
        "[fe80::6]:1",
        "localhost",
    ]:
        assert status_for_host(host, hosts=allowed_hosts) == 200
    assert status_for_host("www.studio.example", hosts=allowed_hosts) == 403


@pytest.mark.parametrize(
    "host", ["", "*", "studio.example:80", "http://studio.example", "[::1]:80", "a b", "*.example"]
)
def test_an_invalid_host_name_cannot_be_allowed(host):
    with pytest.raises(UserError) as caught:
        with_middleware(None, hosts=[host])
    assert str(caught.value) == (
        f"allowed host {host!r} is not a name or an address; "
        "give it like studio.example, without scheme or port"
    )


@pytest.mark.parametrize(
    "hosts, count", [([""], 0), (["localhost", "localhost"], 2), (["localhost", "evil"], 2)]
)
def test_a_request_has_exactly_one_host(hosts, count):
    answer = ask(echoing(), headers=[("Host", host) for host in hosts])
    assert answer.status == 400
    assert answer.error == f"a request needs exactly one Host header, this one has {count}"


def test_a_request_without_a_host_is_rejected():
    async def without_headers(scope, receive, send):
        await echoing()({**scope, "headers": []}, receive, send)

    assert ask(without_headers).error == "a request needs exactly one Host header, this one has 0"


def test_a_target_that_names_a_host_is_rejected():
    answer = ask(echoing(), path="http://evil/")
    assert answer.status == 400
    assert (
        answer.error
        == "the target of a request must be a path that begins with /; leave out the scheme and the host"
    )


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "origin, host, status",
    [
        ("http://localhost:8000", "localhost:8000", 200),
        ("http://LOCALHOST:8000", "localhost.:8000", 200),
        ("http://localhost", "localhost:80", 200),
        ("https://localhost", "localhost:443", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://localhost:8001", "localhost:8000", 403),
        ("http://127.0.0.1:8000", "localhost:8000", 403),
        ("https://localhost", "localhost:80", 403),
        ("http://evil.example", "localhost", 403),
        ("http://localhost@evil.example", "localhost", 403),
        ("http://localhost.evil.example", "localhost", 403),
        ("ftp://localhost", "localhost", 403),
        ("localhost", "localhost", 403),
        ("null", "localhost", 403),
        ("", "localhost", 403),
    ],
)
def test_only_pages_of_the_studio_can_change_something(method, origin, host, status):
    answer = ask(echoing(), method, "/api/generate", [("Host", host), ("Origin", origin)])
    assert answer.status == status
    if status == 403:
        assert answer.error == "this request comes from a page of another origin; use the studio's own page"


def test_each_of_several_origins_must_be_the_studio():
    both = [("Origin", "http://localhost"), ("Origin", "http://evil.example")]
    assert ask(echoing(), "POST", "/api/generate", both).status == 403
    assert ask(echoing(), "POST", "/api/generate", both[:1]).status == 200


def test_a_program_that_sends_no_origin_can_change_something():
    assert ask(echoing(), "POST", "/api/generate").status == 200


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site", "same-site"])
def test_pages_of_other_sites_cannot_read_the_api(site):
    headers = [("Sec-Fetch-Site", site)]
    assert ask(echoing(), "GET", "/api/gallery/1/0.png", headers).status == 403
    assert ask(echoing(), "POST", "/elsewhere", headers).status == 403
    assert ask(echoing(), "GET", "/", headers).status == 200, "a link to the page is harmless"


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_page_itself_and_the_address_bar_can_read_the_api(site):
    assert ask(echoing(), "GET", "/api/gallery/1/0.png", [("Sec-Fetch-Site", site)]).status == 200


def test_no_answer_has_cors_headers():
    answer = ask(
        echoing(),
        "OPTIONS",
        "/api/generate",
        [("Origin", "http://evil"), ("Access-Control-Request-Method", "POST")],
    )
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_websockets_are_rejected_and_lifespan_reaches_the_app():
    scopes, sent = [], []

    async def app(scope, receive, send):
        scopes.append(scope["type"])

    async def send(message):
        sent.append(message)

    for kind in ("websocket", "lifespan"):
        asyncio.run(with_middleware(app)({"type": kind}, None, send))
    assert scopes == ["lifespan"]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- bodies


def post(pieces, headers=(), path="/api/generate", **settings) -> Answer:
    return ask(echoing(**settings), "POST", path, headers, pieces)


def test_the_app_reads_a_body_unchanged():
    assert post([b"ab", b"cd", b""], [("Content-Length", "4")]).body == b"abcd"
    assert post([b"x" * 64 * KIB, b""]).body == b"x" * 64 * KIB


def test_a_body_with_a_large_content_length_is_rejected_before_it_is_read():
    answer = post([b"x"], [("Content-Length", str(64 * KIB + 1))])
    assert (answer.status, answer.pieces_read) == (413, 0)
    assert answer.error == "the body has more than 65536 bytes, the maximum here; send less"
    assert answer.headers["connection"] == "close"
    assert post([b"x" * 64 * KIB, b""], [("Content-Length", str(64 * KIB))]).status == 200


@pytest.mark.parametrize("length", ["9" * 5000, "0" * 5000 + "65537"])
def test_a_content_length_can_have_any_number_of_digits(length):
    assert post([b""], [("Content-Length", length)]).status == 413


def test_a_body_of_unknown_size_is_rejected_at_the_first_byte_above_the_limit():
    answer = post([b"x" * KIB] * 1000)
    assert (answer.status, answer.pieces_read) == (413, 65)


def test_some_paths_accept_larger_bodies():
    limits = {"/api/images": 200 * KIB}
    assert post([b"x" * 200 * KIB, b""], path="/api/images", limits=limits).status == 200
    assert post([b"x" * 200 * KIB, b"x", b""], path="/api/images", limits=limits).status == 413
    assert post([b""], [("Content-Length", "65537")], path="/api/images/", limits=limits).status == 413


@pytest.mark.parametrize(
    "lengths", [["-1"], ["x"], [""], ["1.5"], ["+1"], ["1_0"], ["\xb2"], ["1, 1"], ["1", "2"]]
)
def test_a_content_length_that_is_not_a_number_is_rejected(lengths):
    answer = post([b"x"], [("Content-Length", length) for length in lengths])
    assert (answer.status, answer.pieces_read) == (400, 0)
    assert answer.error == "Content-Length is not one whole number of bytes, 0 or more"


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "deflate", "identity, gzip", "x"])
def test_a_compressed_body_is_never_decompressed(coding):
    answer = post([b"x"], [("Content-Encoding", coding)])
    assert (answer.status, answer.pieces_read) == (415, 0)
    assert answer.error == "compressed bodies are not accepted; send it without Content-Encoding"
    assert post([b""], [("Content-Encoding", "Identity")]).status == 200


def test_a_body_that_never_ends_gets_an_error_while_the_app_waits_for_it():
    answer = post([b"a", b"b"], body_seconds=0.05)
    assert answer.status == 408
    assert answer.error == "the body did not arrive within 0.05 seconds; send the request again"


def test_the_time_before_the_app_reads_does_not_count():
    async def late(request: Request) -> Response:
        await asyncio.sleep(0.1)
        return Response(await request.body())

    app = with_middleware(Starlette(routes=[Route("/", late, methods=["POST"])]), body_seconds=0.05)
    assert ask(app, "POST", "/", pieces=[b"a", b"b", b""]).body == b"ab"


def test_the_answer_of_an_app_whose_body_was_rejected_is_dropped():
    async def answer_anyway(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        assert (await receive())["type"] == "http.disconnect"
        await JSONResponse({"fine": True})(scope, receive, send)
        raise OSError("and now this")

    lines = []
    answer = ask(with_middleware(answer_anyway, log=lines.append), "POST", "/", pieces=[b"x" * 70 * KIB])
    assert (answer.status, len(lines)) == (413, 1)


def test_an_answer_that_has_begun_is_cut_off_if_the_body_is_too_large():
    async def answer_early(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        await send({"type": "http.response.body", "body": b"all is well"})

    answer = ask(with_middleware(answer_early), "POST", "/", pieces=[b"x" * 70 * KIB])
    assert (answer.status, answer.body) == (200, b"")


def test_after_the_body_an_app_can_wait_for_its_client_to_leave():
    async def streaming(request: Request) -> Response:
        body = await request.body()

        async def lines():
            yield body
            await asyncio.sleep(0.1)  # meanwhile the app waits for a disconnect, longer than a body may take
            yield b"end"

        return StreamingResponse(lines())

    app = with_middleware(Starlette(routes=[Route("/", streaming, methods=["POST"])]), body_seconds=0.05)
    assert ask(app, "POST", "/", pieces=[b"a", b""]).body == b"aend"


# --- headers of every answer


POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


@pytest.mark.parametrize(
    "request_arguments, status",
    [
        ({}, 200),
        ({"headers": [("Host", "evil")]}, 403),
        ({"headers": [("Content-Length", "99999")]}, 413),
        ({"method": "PATCH"}, 405),
        ({"path": "/fail"}, 500),
    ],
)
def test_every_answer_has_the_security_headers_once_in_place_of_the_apps_own(request_arguments, status):
    answer = ask(failing_or_echoing(), **request_arguments)
    assert answer.status == status
    assert {name: answer.headers.get(name) for name in SECURE} == SECURE
    assert "cache-control" not in answer.headers


SECURE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def test_answers_of_the_api_are_not_cached():
    for headers in ([], [("Host", "evil")]):
        assert ask(echoing(), path="/api/gallery", headers=headers).headers["cache-control"] == "no-store"
    assert "cache-control" not in ask(echoing(), path="/apis").headers


def failing_or_echoing(log=lambda line: None):
    async def fail(request: Request) -> Response:
        raise RuntimeError("a secret\nGET /forged 200 0.001 s")

    routes = [Route("/fail", fail), Route("/", echo)]
    return with_middleware(Starlette(routes=routes), log=log)


def test_an_unexpected_exception_is_logged_and_not_revealed():
    lines = []
    answer = ask(failing_or_echoing(lines.append), path="/fail")
    assert answer.status == 500
    assert answer.error == (
        "the server failed; your request is not the cause. The reason is in the studio's log. Try again, "
        "and if it fails again, restart the studio"
    )
    traceback, line = lines
    assert "a secret" in traceback and "in fail" in traceback
    assert all(text.startswith("| ") for text in traceback.splitlines())
    assert line.startswith("GET /fail 500 ")


def test_an_exception_after_the_answer_began_is_logged_and_the_answer_left_unfinished():
    async def fail_late(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("late")

    lines = []
    answer = ask(with_middleware(fail_late, log=lines.append))
    assert (answer.status, answer.body) == (200, b"")
    assert "RuntimeError: late" in lines[0] and len(lines) == 2


def test_a_500_of_the_app_itself_is_passed_on():
    async def disk_full(request: Request) -> Response:
        return JSONResponse({"error": "the disk is full", "field": None}, 500)

    answer = ask(with_middleware(Starlette(routes=[Route("/", disk_full)])))
    assert (answer.status, answer.error) == (500, "the disk is full")


def test_a_client_that_disconnects_is_no_error():
    async def read_body(scope, receive, send):
        await Request(scope, receive).body()

    async def disconnect():
        return {"type": "http.disconnect"}

    async def app(scope, receive, send):
        await with_middleware(read_body, log=lines.append)(scope, disconnect, send)

    lines = []
    assert ask(app, "POST").status is None
    assert [line.split()[:3] for line in lines] == [["POST", "/", "499"]]


# --- log lines


def test_each_request_is_one_log_line_without_its_query():
    lines = []
    app = echoing(log=lines.append)
    ask(app, "POST", "/api/generate", pieces=[b"secret", b""])
    ask(app, "GET", "/", [("Host", "evil")])
    assert [line.split()[:3] for line in lines] == [["POST", "/api/generate", "200"], ["GET", "/", "403"]]
    assert all(line.endswith(" s") and 0 <= float(line.split()[3]) < 60 for line in lines)
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize(
    "path, word",
    [
        ("/a\r\nGET /forged 200 0.001 s", "/a%0D%0AGET%20/forged%20200%200.001%20s"),
        ("/a\x00\x1b[31m\x7f\x85", "/a%00%1B%5B31m%7F%C2%85"),
        ("/\u2028\u202e", "/%E2%80%A8%E2%80%AE"),
        ("/\ud800", "/%3F"),
        ("/" + "a" * 500, "/" + "a" * 199 + "..."),
    ],
)
def test_a_path_is_one_word_of_its_log_line(path, word):
    lines = []
    ask(echoing(log=lines.append), path=path)
    assert [line.split(" ")[1] for line in lines] == [word]


@given(st.text())
def test_no_text_becomes_two_lines_or_two_words(text):
    word = as_log_word(text)
    assert word.isascii() and len(word.splitlines()) <= 1 and len(word.split()) <= 1
