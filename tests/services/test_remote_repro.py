"""Two workers and a coordinator, each with a clone of its own, and one remote: everything is run once, and known everywhere."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.clones import STAGE, clone, command, make_origin, must, ran
from thousandwords.files import sha256_of

NEEDS = {"pairs": (), "words": ("pairs",), "pictures": ("pairs",), "tokens": ("pictures",), "generator": ("words", "tokens"),
         "samples": ("generator",)}  # fmt: skip


def machines(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return command(folder, sys.executable, "-m", "flows.machines", *words)


@pytest.fixture
def origin(tmp_path) -> Path:
    return make_origin(tmp_path, NEEDS)


def test_two_workers_run_each_stage_once_and_the_coordinator_ends_with_everything(origin):
    first, second, coordinator = (clone(origin, name) for name in ("first", "second", "coordinator"))
    revision = must(origin, "git", "rev-parse", "HEAD").strip()

    for worker, stage in ((first, "words"), (second, "tokens"), (first, "generator"), (second, "samples")):
        done = machines(worker, "work", "--stage", stage, "--revision", revision)
        assert done.returncode == 0, done.stdout + done.stderr
    assert ran(origin) == ["pairs", "words", "pictures", "tokens", "generator", "samples"]

    done = machines(coordinator, "collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("machines: 0 stages ran here, since no worker had done them\n")
    assert done.stdout.count("is cached - skipping run") == 6 and len(ran(origin)) == 6
    assert set(yaml.safe_load((coordinator / "dvc.lock").read_text())["stages"]) == set(NEEDS)
    assert sha256_of(coordinator / "generator.txt") == sha256_of(first / "generator.txt")
    assert must(origin, "git", "status", "--porcelain") == ""  # no worker pushed anything to git


def test_a_stage_that_no_worker_did_runs_at_the_coordinator_and_is_named(origin):
    worker, coordinator = clone(origin, "worker"), clone(origin, "coordinator")
    assert machines(worker, "work", "--stage", "generator").returncode == 0
    done = machines(coordinator, "collect")
    assert done.stdout.endswith("machines: 1 stages ran here, since no worker had done them: samples\n"), done.stderr


def test_without_a_remote_nothing_is_run(origin):
    must(origin, "dvc", "remote", "remove", "store")
    must(origin, "git", "commit", "-qam", "no remote")
    done = machines(clone(origin, "worker"), "work", "--stage", "pairs")
    assert done.returncode == 1 and ran(origin) == []
    assert done.stderr.startswith("machines: no DVC remote is configured, by which machines hand over what they made.")
    assert "dvc remote add --default" in done.stderr


def test_a_clone_with_changes_is_refused_and_they_are_named(origin):
    worker = clone(origin, "worker")
    (worker / "stage.py").write_text(STAGE + "\n")
    (worker / "new.py").write_text("")
    done = machines(worker, "work", "--stage", "pairs")
    assert done.returncode == 1 and ran(origin) == []
    assert done.stderr == (
        "machines: this clone has changes that no other machine has: stage.py, new.py. Commit them and check that revision out "
        "everywhere, or stash them\n"
    )
    assert "stage.py, new.py" in machines(worker, "collect").stderr


def test_a_stage_that_fails_is_told_and_hands_nothing_over(origin):
    worker = clone(origin, "worker")
    done = machines(worker, "work", "--stage", "nothing")
    assert done.returncode == 1 and "`dvc --wait-for-lock repro --pull nothing` failed with code" in done.stderr
    assert not any((origin.parent / "remote").iterdir())


def test_outside_a_clone_the_mend_is_told(tmp_path):
    done = machines(tmp_path, "collect")
    assert done.returncode == 1 and done.stderr.startswith("machines: there is no dvc.yaml here. Run this in the root of a clone")


def test_a_revision_that_nobody_has_is_refused_and_one_that_only_the_origin_has_is_fetched(origin):
    worker = clone(origin, "worker")
    must(origin, "git", "commit", "-q", "--allow-empty", "-m", "later")
    later = must(origin, "git", "rev-parse", "HEAD").strip()
    assert machines(worker, "work", "--stage", "pairs", "--revision", later).returncode == 0
    assert must(worker, "git", "rev-parse", "HEAD").strip() == later
    done = machines(worker, "work", "--stage", "pairs", "--revision", "f" * 40)
    assert done.returncode == 1 and f"has the revision {'f' * 40}. Push it first: git push" in done.stderr
