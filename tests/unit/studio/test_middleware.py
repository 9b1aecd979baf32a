"""The guards of the web servers: allowed hosts and origins, large bodies, headers of each answer."""

import re

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from studio.api.errors import add_error_handlers
from studio.http.server import SECURITY_HEADERS, Guards
from thousandwords.core.errors import UserError
from thousandwords.core.files import CannotWrite

KIB = 1024


def client(**settings) -> TestClient:
    """Of an app that answers with the body of the request, and fails at /fail."""
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("a secret")

    @app.get("/read-only")
    def write() -> None:
        raise CannotWrite("the gallery cannot be written. Mount it for writing")

    @app.api_route("/{rest:path}", methods=["GET", "POST", "DELETE", "OPTIONS"])
    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"Referrer-Policy": "unsafe-url"})

    return TestClient(Guards(app, **settings), base_url="http://localhost", raise_server_exceptions=False)


def error_of(answer) -> str:
    body = answer.json()
    assert set(body) == {"error", "field"} and body["field"] is None
    return body["error"]


CONFIGURED = ["Studio.Example.", "10.0.0.5", "fe80::5", "[fe80::6]"]


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LOCALHOST", "localhost.:1", "127.0.0.1:65535", "[::1]", "[::1]:80",
        "studio.example", "STUDIO.example:80", "10.0.0.5:8000", "[FE80::5]", "[fe80::6]:1",
    ],
)  # fmt: skip
def test_every_name_of_this_machine_and_every_configured_one_is_allowed(host):
    assert client(hosts=CONFIGURED).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "169.254.169.254", "127.0.0.1@evil", "localhost@evil:80", "evil@localhost", "*", ".",
        "localhost.evil.example", "evil-localhost", "localhost:80:80", "localhost:", "localhost:x", "localhost..",
        "localhost evil", "localhost,evil", "localhost/evil", "localhost#", "localhost\\evil", "http://localhost",
        "127.1", "0x7f.0.0.1", "2130706433", "0.0.0.0", "::1", "[::1", "[::1]evil", "[::]", "%6cocalhost",
        "www.studio.example", "evil.studio.example", "studio.example.evil",
    ],
)  # fmt: skip
def test_any_other_host_is_rejected(host):
    answer = client(hosts=CONFIGURED).get("/", headers={"Host": host})
    message = "this server does not answer to this host name; use localhost, or start it with --allowed-host"
    assert answer.status_code == 403 and error_of(answer) == message


@pytest.mark.parametrize(
    "host", ["", "*", "studio.example:80", "http://studio.example", "[::1]:80", "a b", "*.example"]
)
def test_an_invalid_host_name_cannot_be_allowed(host):
    message = f"^allowed host '{re.escape(host)}' is not a name or an address; give it like studio.example,"
    with pytest.raises(UserError, match=message):
        client(hosts=[host])


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
        *((f"http://{name}", "localhost", 403) for name in ("evil", "localhost@evil", "localhost.evil")),
        *((origin, "localhost", 403) for origin in ("ftp://localhost", "localhost", "null", "")),
    ],
)
def test_only_pages_of_the_studio_can_change_something(method, origin, host, status):
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    answer = client().request(method, "/api/generate", headers=headers)
    assert answer.status_code == status
    message = "this request comes from a page of another origin; use the studio's own page"
    assert status == 200 or error_of(answer) == message


@pytest.mark.parametrize(
    "site, status", [("cross-site", 403), ("Same-Site", 403), ("same-origin", 200), ("none", 200)]
)
def test_pages_of_other_sites_cannot_read_the_api(site, status):
    headers = {"Sec-Fetch-Site": site}
    assert client().get("/api/gallery/1/0.png", headers=headers).status_code == status
    assert client().post("/elsewhere", headers=headers).status_code == status
    assert client().get("/", headers=headers).status_code == 200, "a link to the page is harmless"


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


@pytest.mark.parametrize(
    "method, path, headers, status",
    [
        ("GET", "/", {}, 200),
        ("GET", "/", {"Host": "evil"}, 403),
        ("GET", "/", {"Content-Length": "99999"}, 413),
        ("PATCH", "/", {}, 405),
        ("GET", "/fail", {}, 500),
        ("GET", "/api/gallery", {}, 200),
        ("GET", "/api/gallery", {"Host": "evil"}, 403),
    ],
)
def test_every_answer_has_the_security_headers_once_and_those_of_the_api_are_not_cached(
    method, path, headers, status
):
    answer = client().request(method, path, headers=headers)
    assert answer.status_code == status
    for name, value in SECURITY_HEADERS.items():  # in place of the app's own
        assert answer.headers.get_list(name) == [value]
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers.get("cache-control") == ("no-store" if path.startswith("/api/") else None)


def test_a_user_error_is_answered_with_its_message_and_an_unexpected_exception_is_not_revealed():
    answer = client().get("/read-only")
    assert answer.status_code == 500
    assert error_of(answer) == "the gallery cannot be written. Mount it for writing"
    assert error_of(client().get("/fail")) == (
        "the server failed; your request is not the cause. The reason is in the studio's log. Try again, "
        "and if it fails again, restart the studio"
    )
