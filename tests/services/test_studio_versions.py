"""Versions of the registry in the studio: by number and alias, fetched once, aliases that move."""

import concurrent.futures
import itertools
import json
import os
import threading
import time
from pathlib import Path

import httpx
import pytest

from flows.registry import commands as registry
from flows.registry.versions import CHAMPION, NAME
from studio.data.versions import MLFLOW_TIMEOUTS, Version, Versions
from tests.helpers.prefect_server import wait_for
from tests.helpers.registered_models import client
from tests.helpers.studio_process import StudioProcess
from thousandwords.core.errors import UserError
from thousandwords.core.manifest import read_manifest

PROMPT = "a small green star on sand"


@pytest.fixture
def versions(project):
    return Versions(project, project / "models/package")


def test_the_registrys_versions_follow_the_package_newest_first(versions, project, monkeypatch):
    local, second, first = versions.all()
    assert local == Version("package", str(project / "models/package"), local.fingerprint, (), "trained here")
    assert (second.id, second.label, second.aliases) == ("2", "version 2", ("challenger", "champion"))
    assert (first.id, first.aliases) == ("1", ())
    assert first.fingerprint != second.fingerprint == local.fingerprint
    assert second.note.startswith("sound, commit ")
    monkeypatch.setattr("studio.data.versions.MAX_VERSIONS", 1)
    newest = Versions(project, project / "models/package").all()
    assert [version.id for version in newest] == ["package", "2"]


def test_the_champion_is_the_default_unless_another_version_is_selected(versions, project):
    assert versions.find().id == "2"
    assert Versions(project, project / "models/package", "package").find().id == "package"
    assert Versions(project, project / "models/package", "1").find().id == "1"
    assert versions.find("champion").id == versions.find(None).id == "2" and versions.find("1").id == "1"


def test_without_a_registry_or_one_that_works_there_is_the_package(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/nowhere/mlflow.db")
    assert [version.id for version in Versions(project, project / "models/package").all()] == ["package"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [version.id for version in Versions(project, project / "models/package").all()] == ["package"]
    assert not (project / ".mlflow").exists()


def test_a_registry_that_does_not_answer_is_asked_once_and_not_again_soon(project, monkeypatch, caplog):
    calls = []

    def list_versions(root: Path) -> list:
        calls.append(tuple(os.environ[name] for name in MLFLOW_TIMEOUTS))
        clock = itertools.count(time.monotonic() + 10)  # it took 10 s; each look at the clock is 1 s later
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        raise UserError("MLflow at http://gone failed")

    for name in MLFLOW_TIMEOUTS:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setattr(registry, "list_versions", list_versions)
    versions = Versions(project, project / "models/package")
    assert [[version.id for version in versions.all()] for _ in range(3)] == [["package"]] * 3
    assert calls == [("5", "0")]
    assert "the registry's versions are not available: MLflow at http://gone failed" in caplog.text


def test_an_unknown_version_is_reported_with_the_versions_that_exist(versions):
    message = "there is no version '7'; there is package, 2, challenger, champion, 1. Register one"
    with pytest.raises(UserError, match=message):
        versions.find("7")


def test_a_version_is_fetched_once_and_is_the_registered_one(versions):
    for version in versions.all():
        folder = versions.folder(version)
        assert read_manifest(folder)["sha256"] == version.fingerprint and versions.folder(version) == folder
        assert versions.with_fingerprint(version.fingerprint).fingerprint == version.fingerprint


def test_versions_are_listed_while_one_is_fetched(versions, project, monkeypatch):
    def fetch(*_: object) -> str:
        reader = threading.Thread(target=lambda: answers.append(versions.find("champion").id), daemon=True)
        reader.start()
        reader.join(20)
        return str(project / "fetched")

    answers = []
    monkeypatch.setattr(registry, "fetch", fetch)
    assert versions.folder(Version("1", "version 1", "0f" * 32)) == str(project / "fetched")
    assert answers == ["2"]


@pytest.mark.slow  # half a minute of requests
def test_an_alias_that_moves_under_load_fails_no_request_and_mixes_no_answers(project):
    studio, is_over = StudioProcess(project), threading.Event()
    request = {"prompt": PROMPT, "candidates": 9, "seed": 7}

    def generate_repeatedly(_: int) -> list[list[dict]]:
        answers = []
        while not is_over.is_set():
            response = httpx.post(f"{studio.address}/api/generate", json=request, timeout=60)
            assert response.status_code == 200, response.text[:300]
            events = [json.loads(line) for line in response.text.splitlines()]
            answers.append([event for event in events if event["event"] != "queued"])
        return answers

    try:
        every_version = Versions(project, project / "models/package").all()
        fingerprints = {version.id: version.fingerprint for version in every_version}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(generate_repeatedly, number) for number in range(4)]
            for number in ("1", "2", "1"):
                client().set_registered_model_alias(NAME, CHAMPION, number)
                wait_for(
                    lambda number=number: studio.client.get("/api/versions").json()["default"] == number, 60
                )
                time.sleep(0.2)
            is_over.set()
            answers = [answer for future in futures for answer in future.result()]
        images = {}
        for started, *candidates, ranked in answers:
            assert ranked["event"] == "ranked"
            assert started["fingerprint"] == fingerprints[started["version"]]
            images.setdefault(started["version"], []).append([event["png"] for event in candidates])
        assert set(images) == {"1", "2"}
        assert all(pngs == several[0] for several in images.values() for pngs in several)
    finally:
        is_over.set()
        assert studio.stop() == 0, studio.log.read_text()
