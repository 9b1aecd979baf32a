"""A worker and a coordinator with one remote: each stage runs once, and its outputs reach both."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.clones import STAGE, clone, command, make_origin, must, ran

NEEDS = {
    "pairs": (),
    "text_tokenizer": ("pairs",),
    "generator": ("text_tokenizer",),
    "samples": ("generator",),
}


def remote_repro(folder: Path, *args: str) -> subprocess.CompletedProcess:
    return command(folder, sys.executable, "-m", "flows.dvc.remote_repro", *args)


@pytest.fixture
def origin(tmp_path) -> Path:
    return make_origin(tmp_path, NEEDS)


def test_a_stage_that_no_worker_ran_runs_at_the_coordinator_and_is_named(origin):
    worker, coordinator = clone(origin, "worker"), clone(origin, "coordinator")
    assert remote_repro(worker, "work", "--stage", "generator").returncode == 0
    result = remote_repro(coordinator, "collect")
    ending = "remote_repro: 1 stages ran here, since no worker had run them: samples\n"
    assert result.stdout.endswith(ending), result.stderr
    assert ran(origin) == list(NEEDS)


def remove_remote(worker: Path) -> None:
    must(worker, "dvc", "remote", "remove", "store")
    must(worker, "git", "commit", "-qam", "no remote")


def edit(worker: Path) -> None:
    (worker / "stage.py").write_text(STAGE + "\n")
    (worker / "new.py").write_text("")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_remote, "no DVC remote is configured, through which the machines exchange outputs. Add one that"),
        (edit, "this clone has changes that no other machine has: stage.py, new.py. Commit them and check that"),
        (lambda worker: (worker / "dvc.yaml").unlink(), "there is no dvc.yaml here. Run this in the root of"),
    ],
)  # fmt: skip
def test_a_clone_that_cannot_share_is_rejected_with_the_fix_before_anything_runs(origin, spoil, message):
    worker = clone(origin, "worker")
    spoil(worker)
    for words in (("work", "--stage", "pairs"), ("collect",)):
        result = remote_repro(worker, *words)
        assert result.returncode == 1 and result.stderr.startswith(f"remote_repro: {message}")
    assert ran(origin) == []


def test_what_git_tracks_of_a_run_reaches_the_coordinator_and_is_no_change_of_a_user(tmp_path):
    path = "results/headline.json"
    stage = {"cmd": f"mkdir -p results; python stage.py {path}", "deps": ["stage.py"]}
    stage["metrics"] = [{path: {"cache": False}}]
    files = {"dvc.yaml": yaml.safe_dump({"stages": {"evaluate": stage}}), path: "of another run"}
    origin = make_origin(tmp_path, {}, files)
    worker, coordinator = clone(origin, "worker"), clone(origin, "coordinator")
    for _ in range(2):
        assert remote_repro(worker, "work", "--stage", "evaluate").returncode == 0
    assert remote_repro(coordinator, "collect").returncode == 0
    assert (coordinator / path).read_text() == path and ran(origin) == [path]


def test_a_stage_that_fails_is_reported_and_pushes_nothing(origin):
    worker = clone(origin, "worker")
    result = remote_repro(worker, "work", "--stage", "nothing")
    assert result.returncode == 1
    assert "`dvc --wait-for-lock repro --pull nothing` failed with code" in result.stderr
    assert not any((origin.parent / "remote").iterdir())


def test_a_revision_that_exists_nowhere_is_rejected_and_one_that_only_the_origin_has_is_fetched(origin):
    worker = clone(origin, "worker")
    must(origin, "git", "commit", "-q", "--allow-empty", "-m", "later")
    later = must(origin, "git", "rev-parse", "HEAD").strip()
    assert remote_repro(worker, "work", "--stage", "pairs", "--revision", later).returncode == 0
    assert must(worker, "git", "rev-parse", "HEAD").strip() == later
    result = remote_repro(worker, "work", "--stage", "pairs", "--revision", "f" * 40)
    assert result.returncode == 1 and f"has the revision {'f' * 40}. Push it first: git push" in result.stderr
