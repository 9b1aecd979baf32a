"""What MLflow serves: prompts in, ranked pictures out, and a clear sentence where a request is wrong."""
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

from flows._served_model import Request, ServedPackage
from tests.mlflow_server import answers
from tests.orchestra import free_port, wait_for
from tests.registering import PROMPT
from thousandwords.images import decode_png
from thousandwords.package import load_package

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def served(package_folder):
    model = ServedPackage()
    model.load_context(SimpleNamespace(artifacts={"package": str(package_folder)}))
    return model


def test_a_prompt_becomes_pictures_best_first(served, package_folder):
    (answer,) = served.predict(None, [Request(prompt=PROMPT, candidates=5, seed=7)])
    drawn = load_package(package_folder).draw(PROMPT, candidates=5, seed=7)
    assert answer["prompt"] == PROMPT and len(answer["pictures"]) == 5
    for sent, one in zip(answer["pictures"], drawn, strict=True):
        assert (decode_png(base64.b64decode(sent["png"])) == one.picture).all()
        assert sent["score"] == pytest.approx(one.score, abs=1e-6)
        assert (sent["candidate"], sent["seed"]) == (one.candidate, 7)
    assert json.loads(json.dumps(answer)) == answer


def test_only_the_best_are_sent_if_that_is_asked(served):
    all_of_them, best = served.predict(None, [Request(prompt=PROMPT, candidates=4), Request(prompt=PROMPT, candidates=4, keep=1)])
    assert best["pictures"] == all_of_them["pictures"][:1]


def test_an_answer_names_the_package_it_is_from(served, package_folder):
    (answer,) = served.predict(None, [Request(prompt=PROMPT, candidates=1)])
    assert answer["package"] == load_package(package_folder).fingerprint


@pytest.mark.parametrize(
    "requests, said",
    [
        ([{"prompt": " "}], "the prompt is empty. Say what to draw"),
        ([{"prompt": "a star", "candidates": 0}], "candidates and keep are counts from 1 on"),
        ([{"prompt": "a star", "keep": -1}], "candidates and keep are counts from 1 on"),
        ([{"prompt": "a star", "candidates": 40}] * 2, "80 candidates are asked for, and one request may draw 64. Ask for fewer"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong_before_anything_is_drawn(served, monkeypatch, requests, said):
    monkeypatch.setattr(ServedPackage, "_draw", lambda *_: pytest.fail("it drew"))
    with pytest.raises(MlflowException) as caught:
        served.predict(None, [Request(**request) for request in requests])
    assert said in caught.value.message and caught.value.get_http_status_code() == 400


# --- a real server ---------------------------------------------------------------------------------------------------


def ask(port: int, body: dict) -> tuple[int, dict]:
    """(status, answer)"""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


MLFLOW = ("mlflow", "models", "serve", "-m", "models:/thousandwords@champion", "--env-manager", "local", "-p")


@pytest.mark.parametrize("words", [MLFLOW, ("flows.registry", "serve", "--port")], ids=["mlflow", "make serve"])
def test_the_champion_is_served_with_pickle_forbidden(project, words):
    mlflow, port = Path(sys.executable).with_name("mlflow"), free_port()
    environment = {**os.environ, "PATH": f"{mlflow.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}  # fmt: skip
    words = [sys.executable, "-m", *words, str(port)]
    began = time.monotonic()
    process = subprocess.Popen(words, cwd=project, env=environment, start_new_session=True)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/ping"), 180, "MLflow served nothing")
        up = time.monotonic()
        status, answer = ask(port, {"inputs": [{"prompt": PROMPT, "candidates": 4, "keep": 2, "seed": 5}]})
        print(f"mlflow models serve: up after {up - began:.1f} s, four candidates in {time.monotonic() - up:.2f} s")
        refused, said = ask(port, {"inputs": [{"prompt": " "}]})
        misshapen, why = ask(port, {"inputs": ["a bare text"]})
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    drawn = load_package(project / "models/package").draw(PROMPT, candidates=4, seed=5)
    assert status == 200
    assert answer["predictions"][0]["package"] == load_package(project / "models/package").fingerprint
    for sent, one in zip(answer["predictions"][0]["pictures"], drawn[:2], strict=True):
        assert (decode_png(base64.b64decode(sent["png"])) == one.picture).all()
    assert refused == 400 and "the prompt is empty. Say what to draw" in said["message"]
    assert misshapen == 400 and "Request" in why["message"]
