"""MLflow's own way to load a version: in another folder, where only the version has the library's code."""

import base64
import json
import os
import subprocess
import sys

import pytest

from flows.registry.commands import fetch
from tests.helpers.registered_models import package_images, plant
from tests.helpers.registering import PROMPT
from thousandwords.data.images import encode_png
from thousandwords.inference.package import load_package

REQUESTS = [
    PROMPT,
    {"prompt": PROMPT, "candidates": 3, "keep": 1, "seed": 5, "temperature": 0.5, "top_p": 0.9},
]
PROGRAM = """
import json, sys
import mlflow, pandas
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

model = mlflow.pyfunc.load_model("models:/thousandwords/3")
requests = json.loads(sys.argv[1])
import thousandwords
table = pandas.DataFrame([{"prompt": requests[0]}, requests[1]])  # with empty cells
answers = {
    "list": model.predict(requests),
    "table": model.predict(table),
    "server": TestClient(scoring_server.init(model)).post("/invocations", json={"inputs": requests}).json()["predictions"],
    "server, records": TestClient(scoring_server.init(model)).post("/invocations", json={"inputs": requests[1:]}).json()["predictions"],
}
print(json.dumps({"library": thousandwords.__file__, **answers}))
"""


@pytest.fixture
def answers(project, tmp_path):
    """What MLflow's model and server answer; the version lies in a folder of this test, as Python writes beside its code."""
    plant(tmp_path, lambda folder: None)
    (tmp_path / "elsewhere").mkdir()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", PROGRAM, json.dumps(REQUESTS)]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_mlflow_loads_a_version_without_the_clone_and_its_server_answers(project, answers, tmp_path):
    assert answers["library"] == str(tmp_path / "planted/code/thousandwords/__init__.py")
    package = load_package(tmp_path / "planted/artifacts/package")
    many = package.generate(PROMPT, 8)
    few = package.generate(PROMPT, 3, seed=5, temperature=0.5, top_p=0.9)
    images = [[encode_png(each.image) for each in candidates] for candidates in (many, few[:1])]
    for name in ("list", "table", "server"):
        found = [[base64.b64decode(image["png"]) for image in each["images"]] for each in answers[name]]
        assert found == images, name
    assert answers["server, records"] == answers["list"][1:]
    # the bytecode that Python has written beside the code is no damage
    assert list((tmp_path / "planted/code/thousandwords/__pycache__").glob("*.pyc"))
    assert package_images(fetch("3", tmp_path / "fetched", project))


def test_its_requirements_are_those_of_the_library_with_their_versions(project, tmp_path):
    lines = (plant(tmp_path, lambda folder: None) / "requirements.txt").read_text().splitlines()
    assert len(lines) < 15 and all("==" in line and "+" not in line for line in lines)
    assert {line.partition("==")[0] for line in lines} >= {
        "mlflow",
        "torch",
        "safetensors",
        "open-clip-torch",
    }
