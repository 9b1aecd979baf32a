"""The guards of the web servers: allowed hosts and origins, large bodies, headers of each answer, log lines."""

import logging

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from studio.api.errors import add_error_handlers
from studio.http.server import SECURITY_HEADERS, Guards, without_query
from thousandwords.core.errors import UserError

KIB = 1024


def client(**settings) -> TestClient:
    """Of an app that answers with the body of the request, and fails at /fail."""
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("a secret")

    @app.api_route("/{rest:path}", methods=["GET", "POST", "DELETE", "OPTIONS"])
    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"Referrer-Policy": "unsafe-url"})

    return TestClient(Guards(app, **settings), base_url="http://localhost", raise_server_exceptions=False)


def error_of(answer) -> str:
    body = answer.json()
    assert set(body) == {"error", "field"} and body["field"] is None
    return body["error"]


# --- hosts and origins


def status_for_host(host: str, **settings) -> int:
    return client(**settings).get("/", headers={"Host": host}).status_code


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST", "localhost.:1", "127.0.0.1:65535", "[::1]", "[::1]:80"],
)
def test_every_name_of_this_machine_is_allowed(host):
    assert status_for_host(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "169.254.169.254", "127.0.0.1@evil", "localhost@evil:80", "evil@localhost", "*", ".",
        "localhost.evil.example", "evil-localhost", "localhost:80:80", "localhost:", "localhost:x", "localhost..",
        "localhost evil", "localhost,evil", "localhost/evil", "localhost#", "localhost\\evil", "http://localhost",
        "127.1", "0x7f.0.0.1", "2130706433", "0.0.0.0", "::1", "[::1", "[::1]evil", "[::]", "%6cocalhost",
    ],
)  # fmt: skip
def test_any_other_host_is_rejected(host):
    answer = client().get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert (
        error_of(answer)
        == "this server does not answer to this host name; use localhost, or start it with --allowed-host"
    )


def test_configured_hosts_are_allowed_besides_the_local_ones():
    hosts = ["Studio.Example.", "10.0.0.5", "fe80::5", "[fe80::6]"]
    for host in [
        "studio.example",
        "STUDIO.example:80",
        "10.0.0.5:8000",
        "[FE80::5]",
        "[fe80::6]:1",
        "localhost",
    ]:
        assert status_for_host(host, hosts=hosts) == 200
    for host in ["www.studio.example", "evil.studio.example", "studio.example.evil"]:
        assert status_for_host(host, hosts=hosts) == 403


@pytest.mark.parametrize(
    "host", ["", "*", "studio.example:80", "http://studio.example", "[::1]:80", "a b", "*.example"]
)
def test_an_invalid_host_name_cannot_be_allowed(host):
    with pytest.raises(UserError) as caught:
        client(hosts=[host])
    assert str(caught.value) == (
        f"allowed host {host!r} is not a name or an address; "
        "give it like studio.example, without scheme or port"
    )


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "origin, host, status",
    [
        (None, "localhost", 200),  # a program
        ("http://localhost:8000", "localhost:8000", 200),
        ("https://localhost", "LOCALHOST", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://localhost:8001", "localhost:8000", 403),
        ("http://127.0.0.1:8000", "localhost:8000", 403),
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
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    answer = client().request(method, "/api/generate", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert (
            error_of(answer) == "this request comes from a page of another origin; use the studio's own page"
        )


@pytest.mark.parametrize(
    "site, status", [("cross-site", 403), ("Same-Site", 403), ("same-origin", 200), ("none", 200)]
)
def test_pages_of_other_sites_cannot_read_the_api(site, status):
    headers = {"Sec-Fetch-Site": site}
    assert client().get("/api/gallery/1/0.png", headers=headers).status_code == status
    assert client().post("/elsewhere", headers=headers).status_code == status
    assert client().get("/", headers=headers).status_code == 200, "a link to the page is harmless"


# --- bodies


def test_a_body_up_to_the_limit_reaches_the_app_unchanged():
    assert client().post("/", content=b"x" * 64 * KIB).content == b"x" * 64 * KIB
    answer = client().post("/", content=b"x" * (64 * KIB + 1))
    assert answer.status_code == 413
    assert error_of(answer) == "the body has more than 65536 bytes, the maximum here; send less"


def test_a_body_of_unknown_size_is_rejected_above_the_limit():
    answer = client().post("/", content=(b"x" * KIB for _ in range(65)))
    assert answer.status_code == 413
    assert error_of(answer) == "the body has more bytes than the maximum here; send less"
    assert client().post("/", content=(b"x" * KIB for _ in range(64))).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "x"])
def test_a_compressed_body_is_never_decompressed(coding):
    answer = client().post("/", content=b"x", headers={"Content-Encoding": coding})
    assert answer.status_code == 415
    assert error_of(answer) == "compressed bodies are not accepted; send it without Content-Encoding"
    assert client().post("/", content=b"x", headers={"Content-Encoding": "Identity"}).status_code == 200


# --- answers


@pytest.mark.parametrize(
    "method, path, headers, status",
    [
        ("GET", "/", {}, 200),
        ("GET", "/", {"Host": "evil"}, 403),
        ("GET", "/", {"Content-Length": "99999"}, 413),
        ("PATCH", "/", {}, 405),
        ("GET", "/fail", {}, 500),
    ],
)
def test_every_answer_has_the_security_headers_once_in_place_of_the_apps_own(method, path, headers, status):
    answer = client().request(method, path, headers=headers)
    assert answer.status_code == status
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get_list(name) == [value]
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert "cache-control" not in answer.headers


@pytest.mark.parametrize("headers", [{}, {"Host": "evil"}])
def test_answers_of_the_api_are_not_cached(headers):
    assert client().get("/api/gallery", headers=headers).headers["cache-control"] == "no-store"


def test_an_unexpected_exception_is_not_revealed():
    assert error_of(client().get("/fail")) == (
        "the server failed; your request is not the cause. The reason is in the studio's log. Try again, "
        "and if it fails again, restart the studio"
    )


def test_a_log_line_has_no_query():
    """Which holds prompts. That a path is one word of its line, uvicorn sees to."""
    args = ("127.0.0.1:1", "GET", "/api/dataset?query=a%20secret", "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', args, None)
    assert without_query(record)
    assert record.getMessage() == '127.0.0.1:1 - "GET /api/dataset HTTP/1.1" 200'
