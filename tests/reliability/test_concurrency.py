"""Two runs in one folder, and leftovers of a killed `dvc`: rows E8 to E10 of the reliability plan."""

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows.dvc import repair
from flows.dvc.repro import stream
from tests.helpers.prefect_server import environment, run, tiny_project, wait_for
from tests.helpers.sources import folder_config, write_folder
from tests.helpers.tiny_models import SIDE, tiny
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.ingest import ingest

# the kernel says who writes: a separate lock for each stage, a line for each stage that begins, and one for each clash
PROBE = "exec 9>>{name}.probe; flock -n 9 || echo {name} >>clashes; echo {name} >>begun; {work}"
UNTIL_GO = "until [ -e go ]; do sleep 0.05; done; "
DVC = (sys.executable, "-m", "dvc")


def writer(name: str, *needs: str, work: str = "") -> dict:
    """A stage that writes the file `name`."""
    cmd = PROBE.format(name=name, work=f"{work}echo {name} > {name}")
    return {"cmd": cmd, "deps": list(needs), "outs": [name]}


def begun(project: Path) -> list[str]:
    path = project / "begun"
    return path.read_text().split() if path.is_file() else []


def start(project: Path, *command: str, **settings: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project, env=environment(project / ".prefect", **settings), **pipes)


def wait(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for its end: exit code and output."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def repro(project: Path, *args: str) -> str:
    code, output = wait(start(project, *DVC, "repro", *args))
    assert code == 0, output
    return output


def max_seconds() -> float:
    """Five seconds, and more on a busy machine."""
    return 5 * max(1, os.getloadavg()[0] / os.cpu_count())


def assert_lock_file_is_sound(project: Path, cache: Path | None = None) -> None:
    """Every output that dvc.lock names is in the cache, undamaged."""
    cache = cache or project / ".dvc/cache"
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    for out in [out for stage in lock["stages"].values() for out in stage.get("outs", [])]:
        data = read_cached(cache, out["md5"])
        for file in json.loads(data) if out["md5"].endswith(".dir") else []:
            read_cached(cache, file["md5"])


def read_cached(cache: Path, digest: str) -> bytes:
    data = (cache / "files/md5" / digest[:2] / digest[2:]).read_bytes()
    assert hashlib.md5(data, usedforsecurity=False).hexdigest() == digest.removesuffix(".dir")
    return data


def test_of_two_processes_for_the_same_stage_one_ends_at_once_and_names_the_other(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first", work=UNTIL_GO)})
    winner = start(project, *DVC, "repro")
    wait_for(lambda: begun(project), 60)

    assert repair.repair(project) == []  # no lock of a dead process
    for flags in ([], ["--wait-for-lock"]):  # the flag is for DVC's own lock, not for a running stage
        began = time.monotonic()
        code, output = wait(start(project, *DVC, *flags, "repro"))
        assert code == 255 and time.monotonic() - began < max_seconds()
        assert f"first' is busy, it is being blocked by:\n  (PID {winner.pid}): " in output

    (project / "go").touch()
    assert wait(winner)[0] == 0
    assert "didn't change, skipping" in repro(project)
    assert begun(project) == ["first"] and not (project / "clashes").exists()
    assert_lock_file_is_sound(project)


def test_two_clones_with_one_cache_give_equal_results_and_a_third_runs_nothing(tmp_path):
    stages = {"first": writer("first", "seed", work="sleep 0.3; "), "second": writer("second", "first")}
    clones = [tiny_project(tmp_path / name, stages) for name in ("one", "two", "three")]
    for clone in clones:
        (clone / "seed").touch()
        cache = f"[cache]\n    dir = {tmp_path}/cache\n    type = hardlink,copy\n    shared = group\n"
        (clone / ".dvc/config").write_text((clone / ".dvc/config").read_text() + cache)
    both = [start(clone, sys.executable, "-m", "flows.run_local") for clone in clones[:2]]
    results = [wait(process) for process in both]
    assert [code for code, _ in results] == [0, 0], results
    assert "Stage 'first' is cached - skipping run" in repro(clones[2]) and begun(clones[2]) == []
    locks = {(clone / "dvc.lock").read_text() for clone in clones}
    assert len(locks) == 1 and {(clone / "second").read_text() for clone in clones} == {"second\n"}
    for clone in clones:
        assert_lock_file_is_sound(clone, tmp_path / "cache")


def test_an_entry_that_another_clone_just_renames_in_the_run_cache_fails_no_run(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first", "seed")})
    (project / "seed").touch()
    repro(project)
    (folder,) = (project / ".dvc/cache/runs").glob("*/*")
    renamed = folder / ".entry.tmp"
    renamed.symlink_to("gone")  # listed, but no longer there, as between DVC's two looks at it
    lines = []

    def on_line(line: str) -> None:
        lines.append(line)
        if str(renamed) in line:
            renamed.unlink()

    (project / "dvc.lock").unlink()
    options = {"cwd": project, "env": environment(project / ".prefect")}
    code, all_lines = stream([*DVC, "repro"], on_line, **options)
    assert code == 0, lines
    # else DVC no longer fails, and nothing has to run again
    assert any("failed to reproduce" in line for line in lines), lines
    notice = "another run just wrote to DVC's run cache; the command runs again"
    assert lines == [*all_lines[: lines.index(notice)], notice, *all_lines[lines.index(notice) :]]
    assert begun(project) == ["first"]


SETTINGS = {"seed": 0, "device": "cpu", "tokens": {"rows_per_shard": 4, "batch_size": 4}}
TOKENIZE = "python witness.py --pairs data/pairs --tokenizer models/image_tokenizer --out data/tokens"
WITNESS = """import os, runpy, time
from stages.runtime import stage
from thousandwords.core import files
stage.open_tracker = lambda name, params: stage.NoTracker()  # tracking would take most of the time
written, is_first = os.open("written", os.O_WRONLY | os.O_CREAT | os.O_APPEND), not os.path.exists("again")
def passing(name):  # every durable write calls it several times
    os.write(written, b"%d\\n" % os.getpid())
    time.sleep(1 if is_first and os.path.exists("again") else 0)
files.failpoint = passing
runpy.run_module("stages.tokenize_pairs", run_name="__main__")
"""


@pytest.fixture
def tokenizing(tmp_path) -> Path:
    """A project with that one real stage, which records in `written` which process writes; 40 small shards."""
    stage = {"cmd": TOKENIZE, "deps": ["data/pairs", "models/image_tokenizer"], "outs": ["data/tokens"]}
    project = tiny_project(tmp_path, {"tokenize_pairs": stage})
    (project / "witness.py").write_text(WITNESS)
    write_json(project / "params.yaml", SETTINGS)
    config = folder_config(write_folder(tmp_path / "own", 160), image_size=SIDE, rows_per_shard=4)
    ingest.write_pairs(config, 0, project / "data/pairs")
    components.save(tiny("image_tokenizers", "dvae"), project / "models/image_tokenizer")
    return project


def finished_shards(project: Path) -> dict[str, int]:
    """{finished shard: time of its creation}"""
    manifests = (project / ".store/tokens").glob("[0-9a-f]*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in manifests}


def test_shards_finished_before_dvc_was_killed_are_kept_and_two_processes_never_write(tokenizing):
    """Kill `dvc` alone as soon as some shards are finished, and start it again at once."""
    first = start(tokenizing, *DVC, "repro")
    wait_for(lambda: len(finished_shards(tokenizing)) >= 10 or first.poll() is not None, 120)
    first.kill()
    first.wait()
    finished = finished_shards(tokenizing)
    (tokenizing / "again").touch()  # if the first run continues, then slowly
    output = repro(tokenizing)

    writers = [pid for pid, _ in itertools.groupby((tokenizing / "written").read_text().split())]
    assert len(writers) == len(set(writers)) <= 2  # one after the other
    encoded, total = (int(number) for number in re.search(r"(\d+) of (\d+) shards encoded", output).groups())
    assert encoded <= total - len(finished) and 10 <= len(finished) < total
    assert {key: finished_shards(tokenizing)[key] for key in finished} == finished


ENTRY = '{"write": {"PLACE/first": {"pid": %d, "cmd": "dvc repro"}}}'
UNUSED_PID = 4_194_304  # above the largest process number


@pytest.fixture
def project(tmp_path) -> Path:
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
    return project


@pytest.mark.parametrize(
    "left",
    ["", '{"write": {', '{"read": 1}', ENTRY % UNUSED_PID, ENTRY % os.getpid()],
    ids=["empty", "half", "not a list of locks", "a dead process", "another with a dead one's number"],
)
def test_a_list_of_locks_without_a_live_owner_is_removed(project, left):
    (project / ".dvc/tmp/rwlock").write_text(left.replace("PLACE", str(project)))
    if left == ENTRY % os.getpid():  # a plain dvc fails
        assert wait(start(project, *DVC, "repro"))[0] == 255
    assert repair.repair(project) == ["what a dead `dvc` had locked is free again"]
    assert repair.repair(project) == []
    if left == ENTRY % os.getpid():
        repro(project)


def test_nothing_is_repaired_while_a_dvc_writes(project):
    (project / "dvc.lock").touch()
    with repair.make_lock(str(project / ".dvc/tmp/lock")):
        assert repair.repair(project) == [] and (project / "dvc.lock").exists()


def test_a_truncated_lock_file_costs_no_work(tmp_path, monkeypatch, capsys):
    """Wherever it was cut: an invalid file is moved away, and DVC finds the outputs in its cache."""
    project = tiny_project(tmp_path, {"first": writer("first", "seed"), "second": writer("second", "first")})
    (project / "seed").touch()
    repro(project)
    whole = (project / "dvc.lock").read_bytes()
    monkeypatch.chdir(project)
    moved_away = []
    for cut in range(0, len(whole), 5):
        Path("dvc.lock").write_bytes(whole[:cut])
        repair.main()
        message = "dvc.lock was half-written: it is now .dvc/tmp/dvc.lock.2"
        moved_away.append(message in capsys.readouterr().out)
        assert Path("dvc.lock").exists() is not moved_away[-1]
        if cut == 120:
            assert "Running stage" not in repro(project)
            assert Path("dvc.lock").read_bytes() == whole
    assert moved_away[0] and not all(moved_away) and begun(project) == ["first", "second"]


def test_a_lock_file_with_merge_conflicts_is_left_to_the_user(project):
    (project / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> theirs\n")
    sentence = r"dvc.lock has merge conflict markers.* Take one side: git checkout --theirs dvc.lock$"
    with pytest.raises(UserError, match=sentence):
        repair.repair(project)
    assert (project / "dvc.lock").exists()


def test_an_index_lock_without_an_owner_is_removed_and_one_of_a_live_git_stays(project):
    lock = project / ".git/index.lock"
    lock.touch()
    assert repair.repair(project) == [f"{lock} belonged to no process and is removed"] and not lock.exists()
    lock.touch()
    live_git = subprocess.Popen(["git", "hash-object", "--stdin"], cwd=project, stdin=subprocess.PIPE)
    wait_for(lambda: repair.psutil.Process(live_git.pid).name() == "git", 10)
    assert repair.repair(project) == [] and lock.exists()
    live_git.communicate()
    assert repair.repair(project) and not lock.exists()


FILES = "mkdir out; for i in $(seq 300); do echo $(cat seed) $i > out/$i; done; yes $(cat seed) | head -c 60000000 > out/big"


def kill_while_it_commits(project: Path, trial: int, rng: random.Random) -> bool:
    """Kill a `dvc` at a random moment after its stage's command, while it hashes, caches and writes; whether it had
    not ended."""
    (project / "seed").write_text(f"trial {trial}")
    (project / "made").unlink(missing_ok=True)
    dvc = start(project, *DVC, "repro")
    wait_for((project / "made").exists, 60)
    time.sleep(rng.uniform(0, 0.6))
    dvc.kill()
    return wait(dvc)[0] != 0


def assert_it_is_done(project: Path, trial: int) -> None:
    assert_lock_file_is_sound(project)
    assert (project / "out/7").read_text() == f"trial {trial} 7\n" and (project / "after").exists()
    assert (project / "out/big").read_bytes().startswith(f"trial {trial}\n".encode())


COMMITTED = {
    "make": {"cmd": f"{FILES}; touch made", "deps": ["seed"], "outs": ["out"]},
    "after": writer("after", "out"),
}


@pytest.mark.parametrize("trials", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_dvc_killed_while_it_commits_does_not_block_the_next_run(tmp_path, trials):
    project, rng, unfinished = tiny_project(tmp_path, COMMITTED), random.Random(1), 0
    for trial in range(trials):
        unfinished += kill_while_it_commits(project, trial, rng)
        result = run(project, "flows.run_local")
        assert result.returncode == 0, result.stdout + result.stderr
        assert_it_is_done(project, trial)
    assert unfinished >= trials // 2
