"""The registry on a real MLflow server: commands, an alias that survives a kill, rejected requests.

Rows F2, F4 and F8 of the reliability plan.
"""

import contextlib
import http.client
import json
import random
import sqlite3
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from flows.registry import versions
from flows.registry.commands import fetch, promote, show
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.prefect_server import wait_for
from tests.helpers.registered_models import package_images, run_rollback, two_champions


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server with two champions, one after the other; other tests may have changed it."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow") / "server")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        server.project = two_champions(tmp_path_factory.mktemp("on-server") / "project")
    yield server
    if server.is_alive():
        server.kill()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if not running.is_alive():
        running.start()
    return running


def test_the_commands_do_the_same_on_a_server_as_on_a_database(server, tmp_path):
    second = package_images(fetch("champion", tmp_path / "a", server.project))

    seconds, wall, output = run_rollback(server.project)

    print(f"F4: rollback as a command on a server: {wall:.1f} s, {seconds:.1f} s of CPU")
    assert output == "version 1 is the champion again\n"
    first = package_images(fetch("champion", tmp_path / "a", server.project))
    assert first == package_images(fetch("1", tmp_path / "b", server.project)) != second
    assert "@champion" in show(server.project)[1] and "@challenger" in show(server.project)[0]
    assert promote(server.project) == "2"


def status_of(server: MlflowServer, method: str, path: str, body: dict | None = None, **headers: str) -> int:
    """The server's status for a raw path, which no client of this project would send."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(
        method, path, json.dumps(body) if body else None, {"Content-Type": "application/json", **headers}
    )
    with contextlib.closing(connection):
        return connection.getresponse().status


@pytest.mark.parametrize("host", ["evil.example", "169.254.169.254", "10.0.0.1"])
def test_the_server_answers_to_its_own_names_only(server, host):
    assert status_of(server, "GET", "/", Host=host) == 403
    assert status_of(server, "GET", "/", Host=f"localhost:{server.port}") == 200


def test_a_page_of_another_origin_can_change_nothing(server):
    path = "/api/2.0/mlflow/registered-models/alias"
    body = {"name": "thousandwords", "alias": "champion", "version": "1"}
    assert status_of(server, "POST", path, body, Origin="http://evil.example") == 403
    assert status_of(server, "POST", path, {**body, "alias": "other"}, Origin=server.uri) == 200


@pytest.mark.parametrize(
    "path", ["../server.db", "..%2fserver.db", "%252e%252e%252fserver.db", "%2fetc%2fpasswd"]
)
def test_no_path_leads_out_of_the_artefact_folder(server, path):
    stored = "/api/2.0/mlflow-artifacts/artifacts"
    assert status_of(server, "GET", f"{stored}/{path}") == 400
    assert status_of(server, "PUT", f"{stored}/{path}", {"a": 1}) == 400
    assert status_of(server, "GET", f"{stored}?path={path}") == 400


@pytest.mark.parametrize(
    "route, field, value",
    [
        ("experiments/create", "artifact_location", "http://127.0.0.1/a#/../../etc"),
        ("experiments/create", "artifact_location", "s3://mlflow/a#b"),
        ("experiments/create", "artifact_location", "file:///tmp/a#/../b"),
        ("model-versions/create", "source", "/etc"),
        ("model-versions/create", "source", "file:///etc"),
        ("model-versions/create", "source", "mlflow-artifacts:/../../etc"),
        ("model-versions/create", "source", "s3://mlflow/%2e%2e/other"),
    ],
)
def test_no_experiment_and_no_version_is_created_from_a_place_that_no_run_has(server, route, field, value):
    body = {"name": "thousandwords", field: value}
    assert status_of(server, "POST", f"/api/2.0/mlflow/{route}", body) == 400


def flip_until_it_fails(uri: str, values: list[str]) -> None:
    """Move the alias to and fro; `values` ends with the last answered move and the unanswered one."""
    client = mlflow.MlflowClient(uri, uri)
    while True:
        values.append("1" if values[-1] == "2" else "2")
        try:
            versions.move_alias(client, "champion", values[-1])
        except MlflowException:
            return


def stored(database: Path) -> str:
    """The champion in the database, after an integrity check."""
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        ((version,),) = connection.execute(
            "SELECT version FROM registered_model_aliases WHERE alias = 'champion'"
        )
    return str(version)


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_server_killed_while_the_alias_moves_leaves_the_old_or_the_new_value(server, count):
    moments = random.Random(0)
    for number in range(count):
        if number:
            server.start()
        values = [stored(server.database)]
        flipping = threading.Thread(target=flip_until_it_fails, args=(server.uri, values))
        flipping.start()
        wait_for(lambda values=values: len(values) >= 3, 60)
        time.sleep(moments.uniform(0, 1))
        server.kill()
        flipping.join()

        assert server.is_gone()
        assert stored(server.database) in values[-2:]
