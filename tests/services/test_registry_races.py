"""Concurrent and killed writers of the registry: every version is complete or absent.

Rows F1 and F5 of the reliability plan. Number of trials of the slow tests: THOUSANDWORDS_FLIPS,
THOUSANDWORDS_KILLS.
"""

import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest

from flows.registry.commands import fetch, promote
from flows.registry.versions import NAME, move_alias
from tests.helpers.registered_models import client
from tests.helpers.registering import train
from thousandwords.inference.package import load_package

# --- F1: aliases that move while they are read -----------------------------------------------------------------------


SLOW_FLIPS = int(os.environ.get("THOUSANDWORDS_FLIPS", "1000"))


@pytest.mark.parametrize(
    "flips, reads, threads", [(200, 40, 2), pytest.param(SLOW_FLIPS, SLOW_FLIPS, 4, marks=pytest.mark.slow)]
)
def test_a_moving_alias_always_names_a_complete_version(project, tmp_path, flips, reads, threads):
    """As many writers move the alias as readers fetch it."""
    errors, versions, began = [], [], time.monotonic()
    barrier = threading.Barrier(2 * threads)

    def collect_errors(work, count: int, number: int) -> None:
        barrier.wait()
        for step in range(count):
            try:
                work(step, number)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")

    def write(step: int, number: int) -> None:
        move_alias(client(), "champion", str(1 + (step + number) % 2))

    def read(step: int, number: int) -> None:
        package = fetch("champion", tmp_path / f"{number}-{step}", project)
        versions.append(package.parent.parent.name.partition("-")[0])
        shutil.rmtree(tmp_path / f"{number}-{step}")

    works = [(write, flips // threads, number) for number in range(threads)]
    works += [(read, reads // threads, number) for number in range(threads)]
    running = [threading.Thread(target=collect_errors, args=work) for work in works]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()

    seconds = time.monotonic() - began
    print(
        f"F1: {flips} flips against {reads} reads, by {threads} each, {len(errors)} errors, {seconds:.0f} s"
    )
    assert (len(versions), errors) == (reads, []) and set(versions) <= {"1", "2"}
    assert "MLFLOW_REGISTRY_URI" not in os.environ, "the threads left the variable behind"


# --- F5: a killed registration -------------------------------------------------------------------------------


def check_complete_or_absent(project: Path, folder: Path) -> int:
    """The number of versions, after a check that each is READY and complete, byte for byte."""
    versions = client().search_model_versions(f"name='{NAME}'")
    for version in versions:
        assert version.status == "READY"
        load_package(fetch(str(version.version), folder, project))
    return len(versions)


@pytest.mark.parametrize("failpoint, versions", [("version-stored:1", 2), ("version-created:1", 3)])
def test_a_killed_registration_leaves_no_version_or_a_complete_one(
    project, tmp_path, registry_process, failpoint, versions
):
    train(project, seed=2)
    code, *_ = registry_process.run(project, failpoint=failpoint)
    assert code == -9 and check_complete_or_absent(project, tmp_path / "fetched") == versions

    assert registry_process.run(project)[0] == 0
    assert check_complete_or_absent(project, tmp_path / "fetched") == 3
    assert promote(project) == "3"


@pytest.mark.parametrize(
    "count", [2, pytest.param(int(os.environ.get("THOUSANDWORDS_KILLS", "20")), marks=pytest.mark.slow)]
)
def test_registrations_killed_at_random_moments_leave_complete_versions_only(
    project, tmp_path, registry_process, count
):
    train(project, seed=100)
    code, duration, _ = registry_process.run(project)
    assert code == 0
    moments, counts = random.Random(0), []
    for number in range(count):
        train(project, seed=200 + number)
        code, *_ = registry_process.run(project, after=moments.uniform(0, duration))
        assert code in (-9, 0)
        counts.append(check_complete_or_absent(project, tmp_path / "fetched"))
    assert counts == sorted(counts)
    print(f"F5: {count} registrations killed: {counts[-1] - 3} versions complete, 0 partial")
