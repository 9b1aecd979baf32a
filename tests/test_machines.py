"""Two workers and a coordinator, each with a clone of its own, and one remote: everything is run once, and known everywhere."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from thousandwords.files import sha256_of

ROOT = Path(__file__).parent.parent
NEEDS = {"pairs": (), "words": ("pairs",), "pictures": ("pairs",), "tokens": ("pictures",), "generator": ("words", "tokens"),
         "samples": ("generator",)}  # fmt: skip
STAGE = """import os, sys
open(sys.argv[1], "w").write(" ".join(sys.argv[1:]))
print(sys.argv[1], file=open(os.environ["RUN"], "a"))
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    quiet = {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT), "RUN": str(folder.parent / "run.txt")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    identity = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **quiet, **identity, "PATH": path}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def must(folder: Path, *words: str) -> str:
    done = command(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def machines(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return command(folder, sys.executable, "-m", "flows.machines", *words)


@pytest.fixture
def origin(tmp_path) -> Path:
    """A project of six small stages, committed; its remote is a folder beside it."""
    origin = tmp_path / "origin"
    (origin / ".dvc").mkdir(parents=True)
    (tmp_path / "remote").mkdir()
    (origin / ".dvc/config").write_text(
        f"[core]\n    remote = store\n    autostage = true\n['remote \"store\"']\n    url = {tmp_path / 'remote'}\n"
    )
    (origin / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (origin / ".gitignore").write_text("".join(f"/{name}.txt\n" for name in NEEDS))
    (origin / "stage.py").write_text(STAGE)
    stages = {
        name: {"cmd": f"python stage.py {name}.txt {' '.join(needs)}", "outs": [f"{name}.txt"],
               "deps": ["stage.py", *(f"{other}.txt" for other in needs)]}
        for name, needs in NEEDS.items()
    }  # fmt: skip
    (origin / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    must(origin, "git", "init", "-q", "-b", "main")
    must(origin, "git", "add", "-A")
    must(origin, "git", "commit", "-qm", "six stages")
    return origin


def clone(origin: Path, name: str) -> Path:
    must(origin.parent, "git", "clone", "-q", str(origin), name)
    return origin.parent / name


def ran(origin: Path) -> list[str]:
    """The stages that ran on whatever machine, in order."""
    ledger = origin.parent / "run.txt"
    return [line.removesuffix(".txt") for line in ledger.read_text().splitlines()] if ledger.exists() else []


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
