"""The served model: prompts in, ranked images out, and one clear sentence for a wrong request."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from flows.registry.served_model import Request, ServedPackage
from tests.helpers.mlflow_server import answers
from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import free_port, wait_for
from tests.helpers.registering import PROMPT
from thousandwords.data.images import decode_png
from thousandwords.inference.package import load_package


@pytest.fixture(scope="module")
def served(package_folder):
    model = ServedPackage()
    model.load_context(SimpleNamespace(artifacts={"package": str(package_folder)}))
    return model


def test_a_prompt_becomes_images_best_first(served, package_folder):
    (answer,) = served.predict(None, [Request(prompt=PROMPT, candidates=5, seed=7)])
    candidates = load_package(package_folder).generate(PROMPT, candidates=5, seed=7)
    assert answer["prompt"] == PROMPT and len(answer["images"]) == 5
    for sent, candidate in zip(answer["images"], candidates, strict=True):
        assert (decode_png(base64.b64decode(sent["png"])) == candidate.image).all()
        assert sent["score"] == pytest.approx(candidate.score, abs=1e-6)
        assert (sent["candidate"], sent["seed"]) == (candidate.candidate, 7)
    assert json.loads(json.dumps(answer)) == answer


def test_keep_limits_the_answer_to_the_best_images(served):
    all_of_them, best = served.predict(
        None, [Request(prompt=PROMPT, candidates=4), Request(prompt=PROMPT, candidates=4, keep=1)]
    )
    assert best["images"] == all_of_them["images"][:1]


def test_an_answer_names_the_package_it_is_from(served, package_folder):
    (answer,) = served.predict(None, [Request(prompt=PROMPT, candidates=1)])
    assert answer["package"] == load_package(package_folder).fingerprint


@pytest.mark.parametrize(
    "requests, message",
    [
        ([{"prompt": " "}], "the prompt is empty. Say what to generate"),
        ([{"prompt": "a star", "candidates": 0}], "candidates and keep must be 1 or more"),
        ([{"prompt": "a star", "keep": -1}], "candidates and keep must be 1 or more"),
        (
            [{"prompt": "a star", "candidates": 40}] * 2,
            "the request asks for 80 candidates; the limit is 64. Ask for fewer",
        ),
    ],
)
def test_a_wrong_request_is_rejected_before_anything_is_generated(served, monkeypatch, requests, message):
    monkeypatch.setattr(ServedPackage, "_generate", lambda *_: pytest.fail("it generated"))
    with pytest.raises(MlflowException) as caught:
        served.predict(None, [Request(**request) for request in requests])
    assert message in caught.value.message and caught.value.get_http_status_code() == 400


# --- a real server ---------------------------------------------------------------------------------------------------


def ask(port: int, body: dict) -> tuple[int, dict]:
    """(status, answer)"""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


MLFLOW = ("mlflow", "models", "serve", "-m", "models:/thousandwords@champion", "--env-manager", "local", "-p")


@pytest.mark.parametrize(
    "command", [MLFLOW, ("flows.registry", "serve", "--port")], ids=["mlflow", "make serve"]
)
def test_the_champion_is_served_with_pickle_forbidden(project, command):
    mlflow, port = Path(sys.executable).with_name("mlflow"), free_port()
    environment = {
        **os.environ,
        "PATH": f"{mlflow.parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [sys.executable, "-m", *command, str(port)]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=project, env=environment, start_new_session=True)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/ping"), 180, "MLflow served nothing")
        up = time.monotonic()
        status, answer = ask(port, {"inputs": [{"prompt": PROMPT, "candidates": 4, "keep": 2, "seed": 5}]})
        print(
            f"mlflow models serve: up after {up - began:.1f} s, four candidates in {time.monotonic() - up:.2f} s"
        )
        rejected, error = ask(port, {"inputs": [{"prompt": " "}]})
        malformed, reason = ask(port, {"inputs": ["a bare text"]})
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    candidates = load_package(project / "models/package").generate(PROMPT, candidates=4, seed=5)
    assert status == 200
    assert answer["predictions"][0]["package"] == load_package(project / "models/package").fingerprint
    for sent, candidate in zip(answer["predictions"][0]["images"], candidates[:2], strict=True):
        assert (decode_png(base64.b64decode(sent["png"])) == candidate.image).all()
    assert rejected == 400 and "the prompt is empty. Say what to generate" in error["message"]
    assert malformed == 400 and "Request" in reason["message"]
