"""The studio over HTTP: its answers, its errors, and that it keeps running under load and wrong input."""

import base64
import concurrent.futures
import dataclasses
import io
import json
import shutil
import socket
from types import SimpleNamespace

import httpx
import psutil
import pytest
from PIL import Image

from studio.__main__ import main, page_address
from studio.api.routes import Studio, make_app
from studio.data.gallery import Gallery
from studio.data.versions import Version, Versions
from tests.helpers.prefect_server import wait_for
from tests.helpers.studio_process import StudioProcess, make_project
from tests.helpers.tiny_models import fitting_package, flipped, tiny, write_parts
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.data.images import decode_png
from thousandwords.inference.config import SamplingConfig
from thousandwords.inference.package import load_package, write_package
from thousandwords.inference.provenance import Provenance, encode_png_with_provenance, read_provenance

PROMPT = "a small green star on sand"
GRID = [[1, 2, 3, 4]] * 4


@pytest.fixture(scope="module")
def home(tmp_path_factory, package_folder):
    return make_project(tmp_path_factory.mktemp("studio"), package_folder)


@pytest.fixture(scope="module")
def studio(home):
    studio = StudioProcess(home)
    yield studio
    assert studio.stop() == 0, studio.log.read_text()


def image(width: int = 30, height: int = 20) -> bytes:
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def test_a_caption_gives_ranked_images_that_are_saved_and_reproduced(studio):
    started, *candidates, ranked = studio.generate(prompt=PROMPT, candidates=10, seed=3)
    assert (started["version"], started["prompt"]) == ("package", PROMPT)
    assert [event["candidate"] for event in candidates] == list(range(10))
    assert sorted(ranked["order"]) == list(range(10))
    entry = studio.client.get(f"/api/gallery/{ranked['id']}").json()
    assert [saved["candidate"] for saved in entry["images"]] == ranked["order"]
    for saved in entry["images"]:
        event = candidates[saved["candidate"]]
        data = studio.client.get(saved["url"]).content
        assert data == base64.b64decode(event["png"]) and saved["tokens"] == event["tokens"]
        answer = studio.client.post("/api/reproduce", content=data).json()
        assert answer["same"] and answer["version"] == "package" and answer["tokens"] == event["tokens"]


def test_every_route_answers(studio):
    model = studio.client.get("/api/model").json()
    assert len(model["examples"]) == 3
    assert (model["version"], model["side"], model["image_size"]) == ("package", 4, 16)
    assert model["max_candidates"] == 64
    encoded = studio.client.post("/api/images", content=image()).json()
    assert decode_png(base64.b64decode(encoded["png"])).shape == (16, 16, 3)
    edited = studio.client.post("/api/tokens", json={"tokens": encoded["tokens"], "flip": True}).json()
    assert edited["tokens"] == [row[::-1] for row in encoded["tokens"]]
    request = {"prompt": PROMPT, "tokens": edited["tokens"]}
    likelihood = studio.client.post("/api/likelihood", json=request).json()
    assert len(likelihood["least_likely"]) == 5 and likelihood["image_bits"] > 0
    top_half = [row if number < 2 else [-1] * 4 for number, row in enumerate(edited["tokens"])]
    *_, inpainted, _ = studio.generate(prompt=PROMPT, candidates=1, fixed_tokens=top_half)
    assert inpainted["tokens"][:2] == edited["tokens"][:2]
    wait_for(lambda: dataset_page(studio, query="a star")["state"] == "ready", 60)
    page = dataset_page(studio, query="a star", split="train", limit=5)
    assert len(page["images"]) == 5 and page["splits"] == ["train", "validation", "unseen"]
    page = dataset_page(studio, query="  ", split="")  # no search
    assert len(page["images"]) == 24 and all(item["score"] is None for item in page["images"])
    nearest = studio.client.post("/api/nearest", json={"tokens": GRID, "limit": 3}).json()["images"]
    scores = [item["score"] for item in nearest]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


def dataset_page(studio, **parameters) -> dict:
    return studio.client.get("/api/dataset", params=parameters).json()


def test_the_page_loads_nothing_from_other_hosts(studio):
    page = studio.client.get("/")
    assert page.status_code == 200 and "<main" in page.text
    assert "//" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_the_api_is_described_by_openapi(studio):
    description = studio.client.get("/openapi.json").json()
    for path in ("generate", "reproduce", "images", "tokens", "likelihood", "gallery", "dataset"):
        for operation in description["paths"][f"/api/{path}"].values():
            assert operation["description"] and "422" in operation["responses"]
    assert "temperature" in description["components"]["schemas"]["GenerateRequest"]["properties"]
    assert "Event" in description["components"]["schemas"]


def test_the_settings_of_a_request_are_used(studio):
    *_, ranked = studio.generate(prompt=PROMPT, candidates=2, temperature=0.5, top_k=3, top_p=None)
    settings = studio.client.get(f"/api/gallery/{ranked['id']}").json()["settings"]
    names = ("temperature", "top_k", "top_p", "guidance")
    assert [settings[name] for name in names] == [0.5, 3, None, 1.0]


@pytest.mark.parametrize(
    "field, value",
    [
        ("prompt", ""), ("prompt", " \n\t"), ("prompt", "x" * 20_001), ("prompt", 7),
        ("candidates", 0), ("candidates", 65), ("candidates", -1), ("candidates", 2.5), ("candidates", "2"),
        ("seed", -1), ("seed", 2**63), ("seed", 10**400), ("seed", True), ("temperature", 0), ("top_p", 1.5),
        ("top_k", 0), ("guidance", 3), ("fixed_tokens", GRID), ("fixed_tokens", [[10**30]]), ("version", "nine"),
        ("colour", "red"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(studio, field, value):
    answer = studio.client.post("/api/generate", json={"prompt": PROMPT, field: value})
    assert answer.status_code == 422, answer.text[:300]
    assert answer.json()["field"].partition(".")[0] == field and len(answer.json()["error"]) > 10


def post_json(studio, path: str, body: bytes, content_type: str = "application/json") -> httpx.Response:
    headers = {"Content-Type": content_type} if content_type else {}
    return studio.client.post(path, content=body, headers=headers)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "x", "seed": NaN}', b'{"prompt": "x", "temperature": Infinity}', b'{"prompt": "x", "seed": 1e999}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "\xff\xfe"}', b'{"prompt":', b"", b"null", b"[1]", b"[" * 10_000,
        b'{"a":' * 10_000,
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_rejected(studio, body):
    answer = post_json(studio, "/api/generate", body)
    assert answer.status_code == 422, answer.text[:300]
    assert len(answer.json()["error"]) > 10
    if body == b'{"prompt":':
        assert answer.json() == {"error": "the body: JSON decode error", "field": None}


def test_a_prompt_comes_back_as_it_was_given(studio):
    prompt = "nul \0 and <script>alert(1)</script>"
    assert studio.generate(prompt=prompt, candidates=1)[0]["prompt"] == prompt


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded"])  # the second: curl -d
def test_a_body_without_a_json_content_type_gets_a_message_that_says_so(studio, content_type):
    answer = post_json(studio, "/api/generate", b'{"prompt": "a star"}', content_type)
    message = "the body is not a JSON object. Send one, with the header Content-Type: application/json"
    assert (answer.status_code, answer.json()["error"]) == (422, message)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "the body is empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "this image cannot be read"),
        (b"<svg onload=alert(1)>", "this image cannot be read"),
        (image()[:80], "this image cannot be read"),
    ],
)
def test_a_file_that_is_no_image_is_rejected(studio, data, message):
    answer = studio.client.post("/api/images", content=data)
    assert answer.status_code == 422 and message in answer.json()["error"]
    assert answer.json()["field"] == "image"


@pytest.mark.parametrize("data", [image(), b"GIF89a"])
def test_an_image_that_the_studio_did_not_generate_is_not_reproduced(studio, data):
    answer = studio.client.post("/api/reproduce", content=data)
    message = "this file does not say how it was generated. Give a PNG of the studio as it was downloaded"
    assert (answer.status_code, answer.json()) == (422, {"error": message, "field": "image"})


def test_an_image_of_an_unknown_package_is_rejected_with_its_fingerprint(studio):
    *_, event, _ = studio.generate(prompt=PROMPT, candidates=1)
    data = base64.b64decode(event["png"])
    other = dataclasses.replace(read_provenance(data), package="ab" * 32)
    answer = studio.client.post("/api/reproduce", content=encode_png_with_provenance(decode_png(data), other))
    message = "generated by the package abababababab, which is neither models/package nor in the registry"
    assert answer.status_code == 422 and message in answer.json()["error"]


def test_foreign_hosts_and_large_bodies_are_rejected(studio):
    assert studio.client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    body = b'{"prompt": "x"' + b" " * (64 * 1024 - 15) + b"}"
    assert post_json(studio, "/api/generate", body).status_code == 200
    assert post_json(studio, "/api/generate", body + b" ").status_code == 413
    assert studio.client.post("/api/images", content=b"\0" * (8 * 2**20 + 1)).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/api/gallery/..%2f..%2f..%2fetc%2fpasswd",
        "/api/gallery/../../../etc/passwd/0.png",
        "/api/gallery/x/0.png",
        "/static/../__main__.py",
        "/static/..%2f__main__.py",
        "/static/%2e%2e/app.py",
        "/api/gallery/20260101T000000-00000000",
    ],
)
def test_no_path_leads_out(studio, path):
    url = httpx.URL(studio.address).copy_with(raw_path=path.encode())
    answer = studio.client.send(httpx.Request("GET", url))
    assert answer.status_code == 404, answer.text[:300]
    assert "root:" not in answer.text


def test_a_request_is_one_log_line_without_its_caption(studio):
    before = len(studio.log.read_text().splitlines())
    studio.client.get("/nowhere%0d%0aGET%20/forged?query=secret")
    studio.generate(prompt="a secret", candidates=1)
    lines = wait_for(lambda: (new := studio.log.read_text().splitlines()[before:])[1:] and new, 10)
    assert len(lines) == 2 and not any("secret" in line for line in lines)


def test_a_flood_is_served_up_to_the_queues_capacity_and_leaves_no_trace(studio):
    def send(number: int) -> httpx.Response:
        return client.post("/api/generate", json={"prompt": PROMPT, "candidates": 16, "seed": number})

    memory = sum(psutil.Process(pid).memory_info().rss for pid in studio.pids())
    client = httpx.Client(base_url=studio.address, timeout=60, limits=httpx.Limits(max_connections=None))
    with client, concurrent.futures.ThreadPoolExecutor(200) as pool:
        futures = [pool.submit(send, number) for number in range(200)]
        while not all(future.done() for future in futures):
            assert studio.client.get("/health").status_code == 200
        answers = [future.result() for future in futures]
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) >= 17 and set(statuses) <= {200, 429, 503}, statuses
    for answer in answers:
        if answer.status_code == 200:
            assert json.loads(answer.text.splitlines()[-1])["event"] == "ranked"
        else:
            assert answer.headers["retry-after"] == "1" and "Try again" in answer.json()["error"]
    assert studio.generate(prompt=PROMPT, candidates=1)[-1]["event"] == "ranked"
    assert sum(psutil.Process(pid).memory_info().rss for pid in studio.pids()) - memory < 200e6
    assert studio.client.get("/health").json()["waiting"] == 0


def test_a_request_whose_client_disconnects_is_stopped(studio):
    """200 times, running and queued; afterwards no request waits, and the same worker process generates."""
    pids = studio.pids()
    body = json.dumps({"prompt": PROMPT, "candidates": 64}).encode()
    head = (
        "POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    host, port = studio.address.removeprefix("http://").split(":")
    for number in range(200):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            if number % 10 == 0:
                connection.recv(100)
    wait_for(lambda: studio.client.get("/health").json()["waiting"] == 0, 30)
    assert studio.generate(prompt=PROMPT, candidates=1)[-1]["event"] == "ranked" and studio.pids() == pids


def test_a_killed_worker_process_is_replaced(studio):
    server, worker = studio.pids()
    psutil.Process(worker).kill()
    wait_for(lambda: not psutil.pid_exists(worker) and studio.client.get("/health").status_code == 200, 180)
    assert studio.generate(prompt=PROMPT, candidates=1)[-1]["event"] == "ranked"
    assert studio.pids()[0] == server


def train_again(home, seed: int) -> None:
    parts = write_parts(home / "parts", seed=seed)
    write_package(home / "models/package", parts, SamplingConfig(candidates=4), {"seed": seed})


def test_a_package_that_was_written_again_is_used_from_then_on(home, studio):
    before = studio.client.get("/api/model").json()["fingerprint"]
    train_again(home, seed=1)
    after = studio.client.get("/api/model").json()["fingerprint"]
    assert after != before and studio.generate(prompt=PROMPT, candidates=1)[0]["fingerprint"] == after


def test_an_image_of_several_grids_is_inpainted_by_cells_of_the_finest_and_found(home, studio, tmp_path):
    package = fitting_package(tmp_path, tiny("image_tokenizers", "multi_scale"), "next_scale")
    shutil.rmtree(home / "models/package")
    shutil.copytree(package, home / "models/package")
    model = studio.client.get("/api/model").json()
    assert (model["side"], model["can_edit"]) == (4, False)
    (tokens,) = studio.client.post("/api/images", content=image()).json()["tokens"]
    upper_half = [[*tokens[:-8], *[-1] * 8]]
    *_, inpainted, ranked = studio.generate(prompt=PROMPT, candidates=1, fixed_tokens=upper_half)
    assert studio.client.get(f"/api/gallery/{ranked['id']}").json()["is_inpainted"]
    data = base64.b64decode(inpainted["png"])
    assert studio.client.post("/api/reproduce", content=data).json()["same"]
    wait_for(lambda: dataset_page(studio, query="a star")["state"] == "ready", 60)
    assert studio.client.post("/api/nearest", json={"tokens": inpainted["tokens"]}).json()["images"]
    for path, fields in {"tokens": {}, "likelihood": {"prompt": PROMPT}}.items():
        answer = studio.client.post(f"/api/{path}", json={"tokens": [tokens], **fields})
        assert answer.status_code == 422 and "a coarse token covers many cells" in answer.json()["error"]


def test_a_damaged_package_is_not_used_and_the_fix_is_named(home, studio):
    train_again(home, seed=2)
    weights = home / "models/package/generator/weights.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), 2000))
    answer = studio.client.post("/api/generate", json={"prompt": PROMPT})
    assert answer.status_code == 503 and "generator/weights.safetensors is damaged" in answer.json()["error"]
    assert "make repair" in answer.json()["error"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, with no registry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_before_a_first_run_the_example_model_answers(here, monkeypatch, capsys):
    ended = SimpleNamespace(run=lambda sockets: None)
    monkeypatch.setattr("studio.__main__.server.new_server", lambda *_: ended)
    main(["--port", "0"])
    assert "studio: there is no models/package here, so the example model answers" in capsys.readouterr().out
    versions = Versions(here, None)
    assert [version.id for version in versions.all()] == ["example"]
    assert load_package(versions.folder(versions.find())).fingerprint == versions.find().fingerprint


NO_MODEL = "there is no model: no package at nowhere, and none in the registry. Run: make"
NO_VERSION = "there is no version '9'; there is none at all. Register one with"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--package", "nowhere"], NO_MODEL),
        (["--package", "nowhere", "--version", "9"], NO_VERSION),
        (["--device", "cudaa"], "there is no device 'cudaa' here"),
        (["--queue", "0"], "--queue and --deadline must be above 0"),
        (["--port", "99999"], "the studio cannot listen at 127.0.0.1:99999"),
    ],
)
def test_a_studio_that_cannot_start_says_why_at_once(options, message, package_folder, here, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--package", str(package_folder), *options])
    assert exit_info.value.code == 2 and f"studio: {message}" in capsys.readouterr().err


ADDRESSES = {
    "127.0.0.1": "127.0.0.1",
    "mine.lan": "mine.lan",
    "0.0.0.0": "127.0.0.1",
    "::1": "[::1]",
    "::": "[::1]",
}


@pytest.mark.parametrize("host", ADDRESSES)
def test_the_printed_address_can_be_opened(host):
    assert page_address(host, 80) == f"http://{ADDRESSES[host]}:80"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error, status",
    [(UserError("the registry has lost version 2"), 422), (DamagedArtefact("version 2 is damaged"), 503)],
)
async def test_an_image_whose_version_is_not_available_is_not_reproduced(error, status, tmp_path):
    class LostVersions(Versions):
        def with_fingerprint(self, _: str) -> Version:
            return Version("2", "version 2", "0f" * 32)

        def folder(self, _: Version) -> str:
            raise error

    app = make_app(Studio(None, LostVersions(tmp_path, tmp_path), Gallery(tmp_path)))
    provenance = Provenance(PROMPT, 0, 0, "0f" * 32, SamplingConfig())
    data = encode_png_with_provenance(decode_png(image()), provenance)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post("/api/reproduce", content=data)
    assert (answer.status_code, answer.json()) == (status, {"error": str(error), "field": "image"})


def test_a_port_in_use_is_reported(package_folder, here, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit):
        main(["--package", str(package_folder), "--port", str(other.getsockname()[1])])
    assert "Give another --port, or stop the program that uses this one" in capsys.readouterr().err
