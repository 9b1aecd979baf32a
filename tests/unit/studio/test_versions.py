"""Versions of the registry in the studio: found by number and alias, fetched once, and an alias that moves mixes nothing."""
from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import threading
import time
from pathlib import Path

import httpx
import pytest

from flows import registry
from flows._versions import CHAMPION, NAME
from studio.versions import BRIEFLY, Version, Versions
from tests.orchestra import wait_for
from tests.registered import client
from tests.studio_process import StudioProcess
from thousandwords.errors import UserError
from thousandwords.files import read_manifest

PROMPT = "a small green star on sand"


@pytest.fixture
def versions(project):
    return Versions(project, project / "models/package")


def test_the_registrys_versions_stand_behind_the_package_newest_first(versions, project):
    own, second, first = versions.all()
    assert own == Version("package", str(project / "models/package"), own.fingerprint, (), "trained here")
    assert (second.id, second.label, second.aliases) == ("2", "version 2", ("challenger", "champion"))
    assert (first.id, first.aliases) == ("1", ()) and first.fingerprint != second.fingerprint == own.fingerprint
    assert second.note.startswith("sound, commit ")


def test_the_champion_draws_unless_another_is_named(versions, project):
    assert versions.default().id == "2"
    assert Versions(project, project / "models/package", "package").default().id == "package"
    assert Versions(project, project / "models/package", "1").default().id == "1"
    assert versions.find("champion").id == versions.find(None).id == "2" and versions.find("1").id == "1"


def test_of_very_many_versions_the_newest_are_shown(versions, monkeypatch):
    monkeypatch.setattr("studio.versions.SHOWN", 1)
    assert [one.id for one in versions.all()] == ["package", "2"]


def test_without_a_registry_there_is_the_package(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [one.id for one in Versions(project, project / "models/package").all()] == ["package"]
    assert not (project / ".mlflow").exists()


def test_a_registry_that_does_not_answer_has_no_versions(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/nowhere/mlflow.db")
    assert [one.id for one in Versions(project, project / "models/package").all()] == ["package"]


def test_a_registry_that_does_not_answer_is_asked_once_and_then_left_in_peace(project, monkeypatch, caplog):
    asked = []

    def listed(root: Path) -> list:
        asked.append((os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]))
        clock = itertools.count(time.monotonic() + 10)  # so long it took to say so; a second passes from one look to the next
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        raise UserError("MLflow at http://gone did not do what was asked")

    for name in BRIEFLY:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(registry, "listed", listed)
    versions = Versions(project, project / "models/package")
    for _ in range(3):
        assert [one.id for one in versions.all()] == ["package"]
    assert asked == [("5", "0")]
    assert "no versions of the registry are shown: MLflow at http://gone did not do what was asked" in caplog.text


def test_a_version_that_there_is_not_is_told_with_those_that_there_are(versions):
    with pytest.raises(UserError, match="there is no version '7'; there is package, 2, challenger, champion, 1. Register one"):
        versions.find("7")


def test_a_version_is_fetched_once_and_is_the_one_that_was_registered(versions):
    for one in versions.all():
        folder = versions.folder(one)
        assert read_manifest(folder)["sha256"] == one.fingerprint and versions.folder(one) == folder
        assert versions.drawn_by(one.fingerprint).fingerprint == one.fingerprint
    with pytest.raises(UserError, match="this picture was drawn by the package abababababab, which is neither"):
        versions.drawn_by("ab" * 32)


def test_versions_are_told_while_one_is_fetched(versions, project, monkeypatch):
    def fetch(*_: object) -> str:
        asking = threading.Thread(target=lambda: answers.append(versions.find("champion").id), daemon=True)
        asking.start()
        asking.join(20)
        return str(project / "fetched")

    answers = []
    monkeypatch.setattr(registry, "fetch", fetch)
    assert versions.folder(Version("1", "version 1", "0f" * 32)) == str(project / "fetched") and answers == ["2"]


def test_an_alias_that_moves_under_load_fails_nobody_and_every_answer_is_of_one_version(project):
    studio, is_over = StudioProcess(project), threading.Event()

    def ask_again_and_again(_: int) -> list[list[dict]]:
        answers = []
        while not is_over.is_set():
            answer = httpx.post(f"{studio.address}/api/draw", json={"prompt": PROMPT, "candidates": 9, "seed": 7}, timeout=60)
            assert answer.status_code == 200, answer.text[:300]
            events = [json.loads(line) for line in answer.text.splitlines()]
            answers.append([event for event in events if event["event"] != "queued"])
        return answers

    try:
        packages = {one.id: one.fingerprint for one in Versions(project, project / "models/package").all()}
        with concurrent.futures.ThreadPoolExecutor(4) as crowd:
            asking = [crowd.submit(ask_again_and_again, number) for number in range(4)]
            for wanted in ("1", "2", "1"):
                client().set_registered_model_alias(NAME, CHAMPION, wanted)
                wait_for(lambda wanted=wanted: studio.ask.get("/api/versions").json()["default"] == wanted, 60)
                time.sleep(0.2)
            is_over.set()
            answers = [answer for one in asking for answer in one.result()]
        pictures = {}
        for started, *candidates, ranked in answers:
            assert (ranked["event"], started["fingerprint"]) == ("ranked", packages[started["version"]])
            pictures.setdefault(started["version"], []).append([one["png"] for one in candidates])
        assert set(pictures) == {"1", "2"}
        assert all(one == several[0] for several in pictures.values() for one in several)
    finally:
        is_over.set()
        assert studio.stop() == 0, studio.log.read_text()
