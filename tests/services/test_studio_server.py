"""The studio as a stranger meets it over HTTP: what it answers, what it refuses with a sentence, and that it stays up."""
from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import io
import json
import socket

import httpx
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from studio.__main__ import address_of, main
from studio.app import make_app
from studio.gallery import Gallery
from studio.refusals import answer_problems
from studio.routes import Studio
from studio.versions import Version, Versions
from tests.orchestra import wait_for
from tests.studio_process import StudioProcess, furnish
from tests.tiny import flipped, write_parts
from thousandwords.drawing import Settings
from thousandwords.errors import UserError
from thousandwords.files import CannotWrite, DamagedArtefact
from thousandwords.images import decode_png
from thousandwords.package import write_package
from thousandwords.provenance import Provenance, provenance_of, with_provenance

PROMPT = "a small green star on sand"
GRID = [[1, 2, 3, 4]] * 4


@pytest.fixture(scope="module")
def home(tmp_path_factory, package_folder):
    return furnish(tmp_path_factory.mktemp("studio"), package_folder)


@pytest.fixture(scope="module")
def studio(home):
    running = StudioProcess(home)
    yield running
    assert running.stop() == 0, running.log.read_text()


def picture(width: int = 30, height: int = 20) -> bytes:
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


# --- a visit -----------------------------------------------------------------------------------------------------------


def test_a_caption_becomes_ranked_pictures_that_are_kept_and_drawn_again(studio):
    started, *candidates, ranked = studio.draw(prompt=PROMPT, candidates=10, seed=3)
    assert (started["version"], started["prompt"]) == ("package", PROMPT)
    assert [one["candidate"] for one in candidates] == list(range(10)) and sorted(ranked["order"]) == list(range(10))
    kept = studio.ask.get(f"/api/gallery/{ranked['id']}").json()
    assert [one["candidate"] for one in kept["pictures"]] == ranked["order"]
    for one in kept["pictures"]:
        shown = candidates[one["candidate"]]
        data = studio.ask.get(one["url"]).content
        assert data == base64.b64decode(shown["png"]) and one["words"] == shown["words"]
        again = studio.ask.post("/api/redraw", content=data, headers={"Content-Type": "image/png"}).json()
        assert again["same"] and again["version"] == "package" and again["words"] == shown["words"]


def test_a_visit_of_every_room(studio):
    model = studio.ask.get("/api/model").json()
    assert len(model["examples"]) == 3
    assert (model["version"], model["side"], model["image_size"], model["most_candidates"]) == ("package", 4, 16, 64)
    seen = studio.ask.post("/api/pictures", content=picture()).json()
    assert decode_png(base64.b64decode(seen["png"])).shape == (16, 16, 3)
    made = studio.ask.post("/api/words", json={"words": seen["words"], "flip": True}).json()
    assert made["words"] == [row[::-1] for row in seen["words"]]
    told = studio.ask.post("/api/likelihood", json={"prompt": PROMPT, "words": made["words"]}).json()
    assert len(told["worst"]) == 5 and told["picture_bits"] > 0
    half = [row if number < 2 else [-1] * 4 for number, row in enumerate(made["words"])]
    *_, one, _ = studio.draw(prompt=PROMPT, candidates=1, given=half)
    assert one["words"][:2] == made["words"][:2]
    ready = lambda: studio.ask.get("/api/data", params={"query": "a star"}).json()["state"] == "ready"  # noqa: E731
    wait_for(ready, 60)
    found = studio.ask.get("/api/data", params={"query": "a star", "split": "train", "limit": 5}).json()
    assert len(found["pictures"]) == 5 and found["splits"] == ["train", "validation", "unseen"]
    blank = studio.ask.get("/api/data", params={"query": "  ", "split": ""}).json()["pictures"]
    assert len(blank) == 24 and all(one["score"] is None for one in blank)  # nothing is searched for
    near = studio.ask.post("/api/nearest", json={"words": GRID, "limit": 3}).json()["pictures"]
    assert [one["score"] for one in near] == sorted((one["score"] for one in near), reverse=True) and len(near) == 3


def test_the_page_loads_nothing_from_elsewhere_and_may_not(studio):
    page = studio.ask.get("/")
    assert page.status_code == 200 and "<main" in page.text and "//" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_the_api_describes_itself(studio):
    described = studio.ask.get("/openapi.json").json()
    for path in ("/api/draw", "/api/redraw", "/api/pictures", "/api/words", "/api/likelihood", "/api/gallery", "/api/data"):
        for operation in described["paths"][path].values():
            assert operation["description"] and "422" in operation["responses"]
    assert "temperature" in described["components"]["schemas"]["Draw"]["properties"]
    assert "Event" in described["components"]["schemas"]


def test_the_settings_that_are_asked_for_are_those_that_draw(studio):
    *_, ranked = studio.draw(prompt=PROMPT, candidates=2, temperature=0.5, top_k=3, top_p=None)
    settings = studio.ask.get(f"/api/gallery/{ranked['id']}").json()["settings"]
    assert (settings["temperature"], settings["top_k"], settings["top_p"], settings["guidance"]) == (0.5, 3, None, 1.0)


# --- H3: what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, field", [
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \n\t"}, "prompt"),
    ({"prompt": "x" * 20_001}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"candidates": 0}, "candidates"),
    ({"candidates": 65}, "candidates"),
    ({"candidates": -1}, "candidates"),
    ({"candidates": 2.5}, "candidates"),
    ({"candidates": "2"}, "candidates"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"seed": True}, "seed"),
    ({"temperature": 0}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": 0}, "top_k"),
    ({"guidance": 3}, "guidance"),
    ({"given": GRID}, "given"),
    ({"given": [[10**30]]}, "given.0.0"),
    ({"version": "nine"}, "version"),
    ({"colour": "red"}, "colour"),
])  # fmt: skip
def test_a_wrong_field_is_named(studio, changes, field):
    answer = studio.ask.post("/api/draw", json={"prompt": PROMPT} | changes)
    assert answer.status_code == 422, answer.text[:300]
    assert answer.json()["field"] == field and len(answer.json()["error"]) > 10


@pytest.mark.parametrize("body", [
    b'{"prompt": "x", "seed": NaN}', b'{"prompt": "x", "temperature": Infinity}', b'{"prompt": "x", "seed": 1e999}',
    b'{"prompt": "\\ud800"}', b'{"prompt": "\xff\xfe"}', b'{"prompt":', b"", b"null", b"[1]", b"[" * 10_000, b'{"a":' * 10_000,
])  # fmt: skip
def test_a_body_that_is_no_request_is_told_so(studio, body):
    answer = studio.ask.post("/api/draw", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text[:300]
    assert len(answer.json()["error"]) > 10


def test_a_body_that_breaks_off_is_about_no_field(studio):
    answer = studio.ask.post("/api/draw", content=b'{"prompt":', headers={"Content-Type": "application/json"})
    assert answer.json() == {"error": "the body: JSON decode error", "field": None}


def test_prompts_of_every_length_are_drawn_and_what_is_not_read_is_told(studio):
    for letters, is_cut in ((1, False), (3000, True)):
        started, *_ = studio.draw(prompt="\u00a7" * letters, candidates=1)
        assert started["truncated"] is is_cut, letters
    started, *_ = studio.draw(prompt="nul \0 and <script>alert(1)</script>", candidates=1)
    assert started["prompt"] == "nul \0 and <script>alert(1)</script>"


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_that_is_not_said_to_be_json_is_told_how_to_say_so(studio, headers):
    """What curl -d sends, unless told otherwise."""
    answer = studio.ask.post("/api/draw", content=b'{"prompt": "a star"}', headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"] == "the body is no JSON object. Send one, with the header Content-Type: application/json"


def test_what_a_user_can_mend_is_a_sentence_wherever_it_is_found():
    app = FastAPI()
    answer_problems(app)

    @app.get("/")
    def full() -> None:
        raise CannotWrite("drawn/gallery cannot be written. Mount it for writing")

    answer = TestClient(app).get("/")
    assert (answer.status_code, answer.json()["error"]) == (500, "drawn/gallery cannot be written. Mount it for writing")


@pytest.mark.parametrize("data, said", [
    (b"", "no picture came"),
    (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "this is no picture that can be used"),
    (b"<svg onload=alert(1)>", "this is no picture that can be used"),
    (picture()[:80], "this is no picture that can be used"),
])  # fmt: skip
def test_a_picture_that_is_none_is_told_so(studio, data, said):
    answer = studio.ask.post("/api/pictures", content=data)
    assert answer.status_code == 422 and said in answer.json()["error"]


@pytest.mark.parametrize("data, said", [
    (picture(), "this file does not say how it was drawn. Give a PNG that the studio made, as it was downloaded"),
    (b"GIF89a", "this file does not say how it was drawn"),
])  # fmt: skip
def test_a_picture_of_somebody_elses_is_not_drawn_again(studio, data, said):
    answer = studio.ask.post("/api/redraw", content=data)
    assert (answer.status_code, answer.json()["field"]) == (422, "picture") and said in answer.json()["error"]


def test_a_picture_of_a_package_that_is_not_here_names_it(studio):
    *_, one, _ = studio.draw(prompt=PROMPT, candidates=1)
    data = base64.b64decode(one["png"])
    other = dataclasses.replace(provenance_of(data), package="ab" * 32)
    answer = studio.ask.post("/api/redraw", content=with_provenance(decode_png(data), other))
    assert answer.status_code == 422
    assert "drawn by the package abababababab, which is neither models/package nor in the registry" in answer.json()["error"]


# --- H1, H2, H8: who asks, how much, and for what ------------------------------------------------------------------------


def test_strangers_and_too_much_are_turned_away(studio):
    assert studio.ask.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert studio.ask.get("/health", headers={"Host": "169.254.169.254"}).status_code == 403
    assert studio.ask.post("/api/draw", json={"prompt": "x"}, headers={"Origin": "http://evil.example"}).status_code == 403
    limit = 64 * 1024
    body = b'{"prompt": "x"' + b" " * (limit - 15) + b"}"
    assert studio.ask.post("/api/draw", content=body, headers={"Content-Type": "application/json"}).status_code == 200
    assert studio.ask.post("/api/draw", content=body + b" ", headers={"Content-Type": "application/json"}).status_code == 413
    assert studio.ask.post("/api/pictures", content=b"\0" * (8 * 2**20 + 1)).status_code == 413


@pytest.mark.parametrize("path", [
    "/api/gallery/..%2f..%2f..%2fetc%2fpasswd", "/api/gallery/../../../etc/passwd/0.png", "/api/gallery/x/0.png",
    "/static/../__main__.py", "/static/..%2f__main__.py", "/static/%2e%2e/app.py", "/api/gallery/20260101T000000-00000000",
])  # fmt: skip
def test_no_path_leads_out(studio, path):
    url = httpx.URL(studio.address).copy_with(raw_path=path.encode())
    answer = studio.ask.send(httpx.Request("GET", url))
    assert answer.status_code == 404, answer.text[:300]
    assert "root:" not in answer.text


def test_a_request_writes_one_line_of_log_without_its_caption(studio):
    before = len(studio.log.read_text().splitlines())
    studio.ask.get("/nowhere%0d%0aGET%20/forged?query=secret")
    studio.draw(prompt="a secret", candidates=1)
    lines = wait_for(lambda: (found := studio.log.read_text().splitlines()[before:])[1:] and found, 10)
    assert len(lines) == 2 and not any("secret" in line for line in lines)


# --- H4, H6: many at once, and those who leave ---------------------------------------------------------------------------


def test_a_flood_is_served_as_far_as_the_line_goes_and_leaves_no_trace(studio):
    def ask(number: int) -> httpx.Response:
        return people.post("/api/draw", json={"prompt": PROMPT, "candidates": 64, "seed": number})

    memory = sum(psutil.Process(pid).memory_info().rss for pid in studio.pids())
    people = httpx.Client(base_url=studio.address, timeout=60, limits=httpx.Limits(max_connections=None))
    with people, concurrent.futures.ThreadPoolExecutor(200) as crowd:
        answers = [crowd.submit(ask, number) for number in range(200)]
        while not all(one.done() for one in answers):
            assert studio.ask.get("/health").status_code == 200
        answers = [one.result() for one in answers]
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) >= 17 and set(statuses) <= {200, 429, 503}, statuses
    for answer in answers:
        if answer.status_code == 200:
            assert json.loads(answer.text.splitlines()[-1])["event"] == "ranked"
        else:
            assert answer.headers["retry-after"] == "1" and "Try again" in answer.json()["error"]
    assert studio.draw(prompt=PROMPT, candidates=1)[-1]["event"] == "ranked"
    assert sum(psutil.Process(pid).memory_info().rss for pid in studio.pids()) - memory < 200e6
    assert studio.ask.get("/health").json()["waiting"] == 0


def test_who_hangs_up_is_not_drawn_for(studio):
    """200 times, at work and in the line; afterwards nobody waits, and the same painter draws."""
    pids = studio.pids()
    body = json.dumps({"prompt": PROMPT, "candidates": 64}).encode()
    head = f"POST /api/draw HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = studio.address.removeprefix("http://").split(":")
    for number in range(200):
        with socket.create_connection((host, int(port))) as one:
            one.sendall(head.encode() + body)
            if number % 10 == 0:
                one.recv(100)
    wait_for(lambda: studio.ask.get("/health").json()["waiting"] == 0, 30)
    assert studio.draw(prompt=PROMPT, candidates=1)[-1]["event"] == "ranked" and studio.pids() == pids


def test_a_painter_that_is_killed_is_replaced(studio):
    server, painter = studio.pids()
    psutil.Process(painter).kill()
    wait_for(lambda: not psutil.pid_exists(painter) and studio.ask.get("/health").status_code == 200, 60)
    assert studio.draw(prompt=PROMPT, candidates=1)[-1]["event"] == "ranked"
    assert studio.pids()[0] == server


# --- the package changes, and goes ---------------------------------------------------------------------------------------


def test_a_package_that_was_made_anew_draws_from_then_on(home, studio):
    before = studio.ask.get("/api/model").json()["fingerprint"]
    write_package(home / "models/package", write_parts(home / "parts", seed=1), Settings(candidates=4), {"seed": 1})
    after = studio.ask.get("/api/model").json()["fingerprint"]
    assert after != before and studio.draw(prompt=PROMPT, candidates=1)[0]["fingerprint"] == after


def test_a_package_that_is_damaged_is_not_drawn_with_and_the_mend_is_told(home, studio):
    write_package(home / "models/package", write_parts(home / "parts", seed=2), Settings(candidates=4), {"seed": 2})
    weights = home / "models/package/generator/weights.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), 2000))
    answer = studio.ask.post("/api/draw", json={"prompt": PROMPT})
    assert answer.status_code == 503 and "generator/weights.safetensors is damaged" in answer.json()["error"]
    assert "dvc repro package_model" in answer.json()["error"]


@pytest.mark.parametrize("options, said", [
    (["--package", "nowhere"], "there is nothing to draw with: no package at nowhere, none in the registry. Run: make"),
    (["--package", "nowhere", "--version", "9"], "there is no version '9'; there is none at all. Register one with"),
    (["--device", "cudaa"], "there is no device 'cudaa' here"),
    (["--queue", "0"], "--queue and --deadline should be above 0"),
    (["--port", "99999"], "the studio cannot listen at 127.0.0.1:99999"),
])  # fmt: skip
def test_a_studio_that_cannot_open_says_why_at_once(options, said, package_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["--package", str(package_folder), *options])
    assert ended.value.code == 2 and f"studio: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("host, address", [
    ("127.0.0.1", "http://127.0.0.1:80"), ("mine.lan", "http://mine.lan:80"), ("0.0.0.0", "http://127.0.0.1:80"),
    ("::1", "http://[::1]:80"), ("::", "http://[::1]:80"),
])  # fmt: skip
def test_the_address_that_is_told_can_be_opened(host, address):
    assert address_of(host, 80) == address


@pytest.mark.anyio
@pytest.mark.parametrize("error, status", [
    (UserError("the registry has lost version 2"), 422), (DamagedArtefact("version 2 is damaged"), 503),
])  # fmt: skip
async def test_a_picture_whose_version_cannot_be_had_is_not_drawn_again(error, status, tmp_path):
    class Lost(Versions):
        def drawn_by(self, _: str) -> Version:
            return Version("2", "version 2", "0f" * 32)

        def folder(self, _: Version) -> str:
            raise error

    app = make_app(Studio(None, Lost(tmp_path, tmp_path), Gallery(tmp_path)))
    drawn = with_provenance(decode_png(picture()), Provenance(PROMPT, 0, 0, "0f" * 32, Settings()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post("/api/redraw", content=drawn)
    assert (answer.status_code, answer.json()) == (status, {"error": str(error), "field": "picture"})


def test_a_port_that_is_taken_is_named(package_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["--package", str(package_folder), "--port", str(taken.getsockname()[1])])
    assert "Give another --port, or end what uses this one" in capsys.readouterr().err
