"""Concurrent and killed writers of the registry: every version is complete or absent.

Rows F1 and F5 of the reliability plan. Number of trials of the slow tests: THOUSANDWORDS_FLIPS,
THOUSANDWORDS_KILLS.
"""

from __future__ import annotations

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
from tests.helpers.registry_process import RegistryProcess
from thousandwords.inference.package import load_package

# --- F1: aliases that move while they are read -----------------------------------------------------------------------


def flip_and_read(
    root: Path, folder: Path, flips: int, reads: int, writers: int, readers: int
) -> tuple[int, list[str]]:
    """(number of complete versions read, errors) while writers move the alias and readers fetch it."""
    errors, versions = [], []
    barrier = threading.Barrier(writers + readers)

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
        package = fetch("champion", folder / f"{number}-{step}", root)
        versions.append(package.parent.parent.name.partition("-")[0])
        shutil.rmtree(folder / f"{number}-{step}")

    works = [(write, flips // writers, number) for number in range(writers)]
    works += [(read, reads // readers, number) for number in range(readers)]
    threads = [threading.Thread(target=collect_errors, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(versions) <= {"1", "2"}
    return len(versions), errors


def test_a_moving_alias_always_names_a_complete_version(project, tmp_path):
    complete, errors = flip_and_read(project, tmp_path / "read", flips=200, reads=40, writers=2, readers=2)
    assert (complete, errors) == (40, [])
    assert "MLFLOW_REGISTRY_URI" not in os.environ, "the threads left the variable behind"


@pytest.mark.slow
def test_a_thousand_flips_against_a_thousand_reads(project, tmp_path):
    count = int(os.environ.get("THOUSANDWORDS_FLIPS", "1000"))
    began = time.monotonic()
    complete, errors = flip_and_read(project, tmp_path / "read", count, count, writers=4, readers=4)
    print(
        f"F1: {count} flips by 4 against {complete} reads by 4, {len(errors)} errors, {time.monotonic() - began:.0f} s"
    )
    assert (complete, errors) == (count, [])


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


def kill_registrations(
    project: Path, folder: Path, registry_process: RegistryProcess, count: int
) -> list[int]:
    """Kill `count` registrations at random moments, each of other models.

    The number of versions after each.
    """
    train(project, seed=100)
    code, duration, _ = registry_process.run(project)
    assert code == 0
    moments, counts = random.Random(0), []
    for number in range(count):
        train(project, seed=200 + number)
        code, *_ = registry_process.run(project, after=moments.uniform(0, duration))
        assert code in (-9, 0)
        counts.append(check_complete_or_absent(project, folder))
    return counts


def test_registrations_killed_at_random_moments_leave_complete_versions_only(
    project, tmp_path, registry_process
):
    counts = kill_registrations(project, tmp_path / "fetched", registry_process, 2)
    assert counts == sorted(counts)


@pytest.mark.slow
def test_many_registrations_killed_at_random_moments(project, tmp_path, registry_process):
    count = int(os.environ.get("THOUSANDWORDS_KILLS", "20"))
    counts = kill_registrations(project, tmp_path / "fetched", registry_process, count)
    print(
        f"F5: {count} registrations killed at random moments: {counts[-1] - 3} versions complete, 0 partial"
    )
