"""The model server: prompts in, ranked images out; it runs no code of a version and reads no large body."""

import base64
import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient

from studio import serve
from studio.serve import make_app
from tests.helpers.mlflow_server import answers
from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import free_port, wait_for
from tests.helpers.registered_models import client, plant, seal
from tests.helpers.registering import PROMPT
from thousandwords.data.images import decode_png
from thousandwords.inference.package import load_package


@contextlib.contextmanager
def serving(project: Path):
    """`make serve`: (its process once it answers or has ended, its address, its output)."""
    port, log = free_port(), project / "serve.log"
    command = [sys.executable, "-m", "flows.registry", "serve", "--port", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=output, stderr=output)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or answers(f"{address}/ping"), 180, log.read_text())
        yield process, address, log
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            child.kill()
        process.kill()
        process.wait()


def test_a_version_with_code_of_a_stranger_is_not_served(project, tmp_path):
    """With valid hashes, as anyone who can write to the registry can register it."""
    marker, pins = tmp_path / "marker", {}

    def change(folder: Path) -> None:
        (folder / "_served_model.py").write_text(f"open({str(marker)!r}, 'w').close()")
        pins.update(seal(folder))

    plant(tmp_path, change, pins)
    client().set_registered_model_alias("thousandwords", "champion", "3")
    with serving(project) as (process, _, log):
        assert not marker.exists() and process.poll() == 2
        assert log.read_text() == (
            "registry: version 3 of thousandwords holds '_served_model.py', which is no part of a package. "
            "Do not use it; register a package of your own\n"
        )


def test_the_champion_is_served_and_large_bodies_are_not_read(project):
    package = load_package(project / "models/package")
    request = {"inputs": [{"prompt": PROMPT, "candidates": 4, "keep": 2, "seed": 5}]}
    with serving(project) as (process, address, _), httpx.Client(base_url=address, timeout=60) as http:
        answer = http.post("/invocations", json=request)
        assert answer.status_code == 200, answer.text[:300]
        (prediction,) = answer.json()["predictions"]
        assert prediction["package"] == package.fingerprint
        for sent, candidate in zip(prediction["images"], package.generate(PROMPT, 4, 5)[:2], strict=True):
            assert (decode_png(base64.b64decode(sent["png"])) == candidate.image).all()
            assert sent["score"] == pytest.approx(candidate.score, abs=1e-6)
            assert (sent["candidate"], sent["seed"]) == (candidate.candidate, 5)

        server = psutil.Process(process.pid)
        memory = [server, *server.children(recursive=True)]
        before = sum(child.memory_info().rss for child in memory)
        large = json.dumps({"inputs": [{"prompt": "a" * (200 << 20)}]}).encode()
        answer = http.post("/invocations", content=large, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413, answer.text[:300]
        assert sum(child.memory_info().rss for child in memory) - before < 20e6
        assert http.get("/ping", headers={"Host": "evil.example"}).status_code == 403
        assert http.post("/invocations", json=request, headers={"Origin": "http://evil"}).status_code == 403
        assert http.post("/invocations", json=request).json() == {"predictions": [prediction]}


# --- requests, in this process


@pytest.fixture(scope="module")
def http(package_folder):
    return TestClient(make_app(load_package(package_folder)))


@pytest.mark.parametrize(
    "requests, message",
    [
        ([{"prompt": " "}], "the prompt is empty. Say what to generate"),
        ([{"prompt": "a star", "candidates": 0}], "candidates and keep must be 1 or more"),
        ([{"prompt": "a star", "keep": -1}], "candidates and keep must be 1 or more"),
        (
            [{"prompt": "a star", "candidates": 40}] * 2,
            "the request asks for 80 candidates; the limit is 64.",
        ),
        (
            [{"prompt": "a star", "temprature": 2}],
            "the request: inputs[0] has no key 'temprature'. Did you mean",
        ),
        (["a ring", {"prompt": "a star", "top_p": 2}], "sampling.top_p is 2.0; it needs to be in (0, 1]"),
        ([{"prompt": "a star", "seed": -1}], "the request: seed is -1; it needs to be 0 or more"),
        (
            [{"prompt": "a star", "fixed_tokens": [-1, 0.5]}],
            "inputs[0].fixed_tokens[1] should be a whole number",
        ),
        ([7], "inputs.0."),
    ],
)
def test_a_wrong_request_is_rejected_before_anything_is_generated(http, monkeypatch, requests, message):
    monkeypatch.setattr(serve, "answer", lambda *_: pytest.fail("it generated"))
    answer = http.post("/invocations", json={"inputs": requests})
    assert answer.status_code == 422 and message in answer.json()["error"]


def test_an_answered_image_is_inpainted_by_its_tokens(http):
    def images(**request: object) -> list[dict]:
        answer = http.post("/invocations", json={"inputs": [{"prompt": PROMPT, "candidates": 1, **request}]})
        assert answer.status_code == 200, answer.json()["error"]
        return answer.json()["predictions"][0]["images"]

    (first,) = images()
    half = len(first["tokens"]) // 2
    (again,) = images(seed=1, fixed_tokens=first["tokens"][:half] + [-1] * (len(first["tokens"]) - half))
    assert again["tokens"][:half] == first["tokens"][:half] and again["tokens"] != first["tokens"]
    answer = http.post("/invocations", json={"inputs": [{"prompt": PROMPT, "fixed_tokens": [-1]}]})
    assert (
        answer.status_code == 422 and "fixed_tokens is torch.int64 of shape (1, 1)" in answer.json()["error"]
    )


def test_of_a_crowd_some_are_served_and_the_rest_get_retry_after(http, monkeypatch):
    monkeypatch.setattr(serve, "answer", lambda *_: time.sleep(0.2) or {})
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        body = {"inputs": [PROMPT]}
        answers = list(pool.map(lambda _: http.post("/invocations", json=body), range(40)))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) >= 16 and set(statuses) == {200, 429}
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 429} == {"1"}
