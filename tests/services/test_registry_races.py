"""The registry while others write, and when a writer dies: an alias names a whole version, a version is whole or not there.

Rows F1 and F5 of the reliability plan. N of what is marked slow: THOUSANDWORDS_FLIPS, THOUSANDWORDS_KILLS.
"""
from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest

from flows import _versions, registry
from tests.nursery import Nursery
from tests.registered import NAME, client
from tests.registering import train
from thousandwords.package import load_package

# --- F1: aliases that move while they are read -----------------------------------------------------------------------


def flip_and_read(root: Path, folder: Path, flips: int, reads: int, writers: int, readers: int) -> tuple[int, list[str]]:
    """(reads that found a whole version, what went wrong) of writers that move the alias while readers fetch it."""
    errors, found = [], []
    barrier = threading.Barrier(writers + readers)

    def guarded(work, count: int, number: int) -> None:
        barrier.wait()
        for step in range(count):
            try:
                work(step, number)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")

    def write(step: int, number: int) -> None:
        _versions.move(client(), "champion", str(1 + (step + number) % 2))

    def read(step: int, number: int) -> None:
        place = registry.fetch("champion", folder / f"{number}-{step}", root)
        found.append(place.parent.parent.name.partition("-")[0])
        shutil.rmtree(folder / f"{number}-{step}")

    works = [(write, flips // writers, number) for number in range(writers)]
    works += [(read, reads // readers, number) for number in range(readers)]
    threads = [threading.Thread(target=guarded, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {"1", "2"}
    return len(found), errors


def test_an_alias_that_moves_always_names_a_whole_version(project, tmp_path):
    whole, errors = flip_and_read(project, tmp_path / "read", flips=200, reads=40, writers=2, readers=2)
    assert (whole, errors) == (40, [])
    assert "MLFLOW_REGISTRY_URI" not in os.environ, "the threads left behind where they looked"


@pytest.mark.slow
def test_a_thousand_flips_against_a_thousand_reads(project, tmp_path):
    count = int(os.environ.get("THOUSANDWORDS_FLIPS", "1000"))
    began = time.monotonic()
    whole, errors = flip_and_read(project, tmp_path / "read", count, count, writers=4, readers=4)
    print(f"F1: {count} flips by 4 against {whole} reads by 4, {len(errors)} errors, {time.monotonic() - began:.0f} s")
    assert (whole, errors) == (count, [])


# --- F5: a registration that is killed -------------------------------------------------------------------------------


def check_whole_or_absent(project: Path, folder: Path) -> int:
    """How many versions there are, each of them READY and whole, byte for byte."""
    versions = client().search_model_versions(f"name='{NAME}'")
    for version in versions:
        assert version.status == "READY"
        load_package(registry.fetch(str(version.version), folder, project))
    return len(versions)


@pytest.mark.parametrize("place, versions", [("version-stored:1", 2), ("version-created:1", 3)])
def test_a_killed_registration_leaves_no_version_or_a_whole_one(project, tmp_path, nursery, place, versions):
    train(project, seed=2)
    code, *_ = nursery.run(project, failpoint=place)
    assert code == -9 and check_whole_or_absent(project, tmp_path / "seen") == versions

    assert nursery.run(project)[0] == 0
    assert check_whole_or_absent(project, tmp_path / "seen") == 3
    assert registry.promote(project) == "3"


def kill_registrations(project: Path, folder: Path, nursery: Nursery, count: int) -> list[int]:
    """Kills `count` registrations at random moments, each of other models; the number of versions after each."""
    train(project, seed=100)
    code, whole, _ = nursery.run(project)
    assert code == 0
    moments, left = random.Random(0), []
    for number in range(count):
        train(project, seed=200 + number)
        code, *_ = nursery.run(project, after=moments.uniform(0, whole))
        assert code in (-9, 0)
        left.append(check_whole_or_absent(project, folder))
    return left


def test_registrations_killed_at_random_moments_leave_whole_versions_alone(project, tmp_path, nursery):
    left = kill_registrations(project, tmp_path / "seen", nursery, 2)
    assert left == sorted(left)


@pytest.mark.slow
def test_many_registrations_killed_at_random_moments(project, tmp_path, nursery):
    count = int(os.environ.get("THOUSANDWORDS_KILLS", "20"))
    left = kill_registrations(project, tmp_path / "seen", nursery, count)
    print(f"F5: {count} registrations killed at random moments: {left[-1] - 3} versions whole, 0 in part")
