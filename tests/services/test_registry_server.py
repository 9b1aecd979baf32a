"""The registry on a real MLflow server: the same commands, an alias that outlives the server's sudden end, doors that stay shut.

Rows F2, F4 and F8 of the reliability plan. N of what is marked slow: THOUSANDWORDS_KILLS, THOUSANDWORDS_MOVES.
"""
from __future__ import annotations

import http.client
import json
import os
import random
import sqlite3
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from flows import _versions, registry
from tests.mlflow_server import MlflowServer
from tests.registered import pictures, run_rollback, two_champions
from tests.test_champions import move_at_once


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server with two champions, one after the other; what a test finds changed in it may be another's."""
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


def test_on_a_server_the_commands_do_what_they_do_on_a_database(server, tmp_path):
    second = pictures(registry.fetch("champion", tmp_path / "a", server.project))

    seconds, wall, said = run_rollback(server.project)

    print(f"F4: rollback as a command on a server: {wall:.1f} s, {seconds:.1f} s of them its own")
    assert said == "version 1 is the champion again\n" and seconds < 5
    first = pictures(registry.fetch("champion", tmp_path / "a", server.project))
    assert first == pictures(registry.fetch("1", tmp_path / "b", server.project)) != second
    assert "@champion" in registry.show(server.project)[1] and "@challenger" in registry.show(server.project)[0]
    assert registry.promote(server.project) == "2"


# --- F8: its doors ---------------------------------------------------------------------------------------------------


def status_of(server: MlflowServer, method: str, path: str, body: dict | None = None, **headers: str) -> int:
    """What the server answers to a path as it stands, which no client of ours would send."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Content-Type": "application/json", **headers})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("host, status", [("evil.example", 403), ("169.254.169.254", 403), ("10.0.0.1", 403), (None, 200)])
def test_the_server_answers_to_its_own_names_only(server, host, status):
    assert status_of(server, "GET", "/", Host=host or f"localhost:{server.port}") == status


def test_a_page_from_elsewhere_can_change_nothing(server):
    path, wanted = "/api/2.0/mlflow/registered-models/alias", {"name": "thousandwords", "alias": "champion", "version": "1"}
    assert status_of(server, "POST", path, wanted, Origin="http://evil.example") == 403
    assert status_of(server, "POST", path, {**wanted, "alias": "other"}, Origin=server.uri) == 200


@pytest.mark.parametrize("path", ["../server.db", "..%2fserver.db", "%252e%252e%252fserver.db", "%2fetc%2fpasswd"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_no_path_leads_out_of_the_folder_of_artefacts(server, method, path):
    body = {"a": 1} if method == "PUT" else None
    assert status_of(server, method, f"/api/2.0/mlflow-artifacts/artifacts/{path}", body) == 400
    assert status_of(server, "GET", f"/api/2.0/mlflow-artifacts/artifacts?path={path}") == 400


@pytest.mark.parametrize("place", ["http://127.0.0.1/a#/../../etc", "s3://mlflow/a#b", "file:///tmp/a#/../b"])
def test_a_place_for_artefacts_with_a_fragment_is_refused(server, place):
    wanted = {"name": f"at {place}", "artifact_location": place}
    assert status_of(server, "POST", "/api/2.0/mlflow/experiments/create", wanted) == 400


@pytest.mark.parametrize("source", ["/etc", "file:///etc", "mlflow-artifacts:/../../etc", "s3://mlflow/%2e%2e/other"])
def test_no_version_can_be_made_of_files_that_no_run_stored(server, source):
    wanted = {"name": "thousandwords", "source": source}
    assert status_of(server, "POST", "/api/2.0/mlflow/model-versions/create", wanted) == 400


# --- F2: its sudden end ----------------------------------------------------------------------------------------------


def kill_amid_flips(server: MlflowServer, count: int) -> int:
    """Kills the server `count` times while the alias moves; how often it moved."""
    moments, flips = random.Random(0), 0
    for number in range(count):
        if number:
            server.start()
        told = [stored(server.database)]
        flipping = threading.Thread(target=flip_until_it_fails, args=(server.uri, told))
        flipping.start()
        while len(told) < 3 and flipping.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1))
        server.kill()
        flipping.join()

        *_, last, tried = told
        assert server.is_gone()
        assert stored(server.database) in (last, tried)
        assert len(told) >= 3, "it was killed before the first flip was answered"
        flips += len(told) - 2
    return flips


def flip_until_it_fails(uri: str, told: list[str]) -> None:
    """Moves the alias to and fro; `told` ends with the last move that was answered and the one that was not."""
    client = mlflow.MlflowClient(uri, uri)
    while True:
        told.append("1" if told[-1] == "2" else "2")
        try:
            _versions.move(client, "champion", told[-1])
        except MlflowException:
            return


def stored(database: Path) -> str:
    """The champion, by the database itself, which has to be whole."""
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        ((version,),) = connection.execute("SELECT version FROM registered_model_aliases WHERE alias = 'champion'")
    return str(version)


def test_a_server_killed_while_the_alias_moves_leaves_the_old_or_the_new_value(server):
    assert kill_amid_flips(server, 1) > 0


@pytest.mark.slow
def test_a_server_killed_many_times_while_the_alias_moves(server):
    count = int(os.environ.get("THOUSANDWORDS_KILLS", "20"))
    flips = kill_amid_flips(server, count)
    print(f"F2: the server killed {count} times, amid {flips} flips: each time the old or the new value, the database whole")


@pytest.mark.slow
def test_promotions_and_rollbacks_of_several_machines_leave_one_history(nursery, tmp_path, monkeypatch):
    server, began = MlflowServer(tmp_path / "server"), time.monotonic()
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    rounds = int(os.environ.get("THOUSANDWORDS_MOVES", "100")) // 4
    done, refused, killed = move_at_once(two_champions(tmp_path / "project"), nursery, rounds, width=4, killed_share=0.3)
    server.kill()
    print(f"{4 * rounds} promotions and rollbacks on a server, four at once: {done} done, {refused} told why not, "
          f"{killed} killed; one history; {time.monotonic() - began:.0f} s")  # fmt: skip
