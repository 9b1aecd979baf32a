"""Concurrent and killed writers of the registry: every version is complete or absent.

Rows F1 and F5 of the reliability plan. Number of trials of the slow tests: THOUSANDWORDS_FLIPS,
THOUSANDWORDS_KILLS.
"""

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.registry.commands import fetch, promote
from flows.registry.versions import NAME, move_alias
from tests.helpers.registered_models import client
from tests.helpers.registering import train
from thousandwords.inference.package import load_package

FLIPS = int(os.environ.get("THOUSANDWORDS_FLIPS", "1000"))


@pytest.mark.parametrize(
    "flips, reads, threads", [(200, 40, 2), pytest.param(FLIPS, FLIPS, 4, marks=pytest.mark.slow)]
)
def test_a_moving_alias_always_names_a_complete_version(project, tmp_path, flips, reads, threads):
    """F1: as many writers move the alias as readers fetch it."""

    def write(number: int) -> None:
        for step in range(flips // threads):
            move_alias(client(), "champion", str(1 + (step + number) % 2))

    def read(number: int) -> set[str]:
        versions, folder = [], tmp_path / str(number)
        for _ in range(reads // threads):
            versions.append(fetch("champion", folder, project).parent.parent.name.partition("-")[0])
            shutil.rmtree(folder)
        assert len(versions) == reads // threads
        return set(versions)

    with ThreadPoolExecutor(2 * threads) as pool:
        writing = [pool.submit(write, number) for number in range(threads)]
        reading = [pool.submit(read, number) for number in range(threads)]
    assert [future.result() for future in writing] == [None] * threads
    assert set().union(*(future.result() for future in reading)) <= {"1", "2"}
    assert "MLFLOW_REGISTRY_URI" not in os.environ, "the threads left the variable behind"


def check_complete_or_absent(project: Path, folder: Path) -> int:
    """The number of versions, after a check that each is READY and complete, byte for byte."""
    versions = client().search_model_versions(f"name='{NAME}'")
    for version in versions:
        assert version.status == "READY"
        load_package(fetch(str(version.version), folder, project))
    return len(versions)


@pytest.mark.parametrize(("failpoint", "versions"), [("version-stored:1", 2), ("version-created:1", 3)])
def test_a_killed_registration_leaves_no_version_or_a_complete_one(
    project, tmp_path, registry_process, failpoint, versions
):
    train(project, seed=2)
    ended = registry_process.run("register", folder=str(project), failpoint=failpoint)
    assert ended.code == -9 and check_complete_or_absent(project, tmp_path / "fetched") == versions

    assert registry_process.run("register", folder=str(project)).code == 0
    assert check_complete_or_absent(project, tmp_path / "fetched") == 3
    assert promote(project) == "3"


@pytest.mark.slow
def test_registrations_killed_at_random_moments_leave_complete_versions_only(
    project, tmp_path, registry_process
):
    train(project, seed=100)
    usual = registry_process.run("register", folder=str(project)).seconds
    moments, counts = random.Random(0), []
    for number in range(int(os.environ.get("THOUSANDWORDS_KILLS", "20"))):
        train(project, seed=200 + number)
        after = moments.uniform(0, usual)
        assert registry_process.run("register", folder=str(project), signal_after=after).code in (-9, 0)
        counts.append(check_complete_or_absent(project, tmp_path / "fetched"))
    assert counts == sorted(counts)
    print(f"F5: {len(counts)} registrations killed: {counts[-1] - 3} versions complete, 0 partial")
