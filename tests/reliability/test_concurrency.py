"""Two at work in one folder, and what a killed `dvc` leaves: rows E6 and E8 to E10 of the table of what may go wrong.

The slow tests are trials of the same kind, THOUSANDWORDS_KILLS of each; they print what they saw.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from flows import repair
from tests.killing import Nursery
from tests.orchestra import environment, run, tiny_project, wait_for
from tests.test_flows import planned_waits
from tests.test_kills import WORK, Never, left_by
from tests.tiny import SIDE, tiny
from thousandwords import components, pairs
from thousandwords.errors import UserError
from thousandwords.files import sha256_of, write_json
from thousandwords.images import encode_png

TRIALS = int(os.environ.get("THOUSANDWORDS_KILLS", "20"))
# the kernel's word on who writes: a lock of its own for each stage, a line for each that begins, and one for each clash
PROBE = "exec 9>>{name}.probe; flock -n 9 || echo {name} >>clashes; echo {name} >>begun; {work}"
UNTIL_TOLD = "until [ -e go ]; do sleep 0.05; done; "
DVC = (sys.executable, "-m", "dvc")


def writer(name: str, *needs: str, work: str = "") -> dict:
    """A stage that writes the file `name`."""
    cmd = PROBE.format(name=name, work=f"{work}echo {name} > {name}")
    return {"cmd": cmd, "deps": list(needs), "outs": [name]}


def begun(project: Path) -> list[str]:
    path = project / "begun"
    return path.read_text().split() if path.is_file() else []


def start(project: Path, *words: str, **settings: str) -> subprocess.Popen:
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=project, env=environment(project / ".prefect", **settings), **told)


def start_flow(project: Path, server) -> subprocess.Popen:
    return start(project, sys.executable, "-m", "flows.pipeline", PREFECT_API_URL=server.api)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Its code and what it said."""
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def repro(project: Path, *words: str) -> str:
    code, said = ended(start(project, *DVC, "repro", *words))
    assert code == 0, said
    return said


def at_once() -> float:
    """Five seconds, and more on a machine that has other work to do."""
    return 5 * max(1, os.getloadavg()[0] / os.cpu_count())


def assert_lock_file_is_sound(project: Path, cache: Path | None = None) -> None:
    """Every output that dvc.lock names is in the cache, with the bytes that it should have."""
    cache = cache or project / ".dvc/cache"
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    for out in [out for stage in lock["stages"].values() for out in stage.get("outs", [])]:
        listed = held(cache, out["md5"])
        for file in json.loads(listed) if out["md5"].endswith(".dir") else []:
            held(cache, file["md5"])


def held(cache: Path, digest: str) -> bytes:
    data = (cache / "files/md5" / digest[:2] / digest[2:]).read_bytes()
    assert hashlib.md5(data, usedforsecurity=False).hexdigest() == digest.removesuffix(".dir")
    return data


# --- E8: two at work -------------------------------------------------------------------------------------------------


def test_of_two_that_want_the_same_stage_one_ends_at_once_and_says_who_has_it(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first", work=UNTIL_TOLD)})
    winner = start(project, *DVC, "repro")
    wait_for(lambda: begun(project), 60)

    assert repair.repair(project) == []  # nothing here is of the dead
    for flags in ([], ["--wait-for-lock"]):  # the flag is for DVC's own lock, not for a stage at work
        came = time.monotonic()
        code, said = ended(start(project, *DVC, *flags, "repro"))
        assert code == 255 and time.monotonic() - came < at_once()
        assert f"first' is busy, it is being blocked by:\n  (PID {winner.pid}): " in said

    (project / "go").touch()
    assert ended(winner)[0] == 0
    assert "didn't change, skipping" in repro(project)
    assert begun(project) == ["first"] and not (project / "clashes").exists()
    assert_lock_file_is_sound(project)


def test_two_stages_side_by_side_are_both_in_the_lock_file(tmp_path):
    project = tiny_project(tmp_path, {name: writer(name, work="sleep 0.3; ") for name in ("left", "right")})
    both = [start(project, *DVC, "--wait-for-lock", "repro", "-s", name) for name in ("left", "right")]
    assert [ended(one)[0] for one in both] == [0, 0]
    assert set(yaml.safe_load((project / "dvc.lock").read_text())["stages"]) == {"left", "right"}
    assert_lock_file_is_sound(project)
    repro(project)
    assert sorted(begun(project)) == ["left", "right"]


def test_two_clones_with_one_cache_end_with_the_same_and_a_third_runs_nothing(tmp_path):
    stages = {"first": writer("first", "seed", work="sleep 0.3; "), "second": writer("second", "first")}
    clones = [tiny_project(tmp_path / name, stages) for name in ("one", "two", "three")]
    for clone in clones:
        (clone / "seed").touch()
        with open(clone / ".dvc/config", "a") as config:
            config.write(f"[cache]\n    dir = {tmp_path}/cache\n    type = hardlink,copy\n    shared = group\n")
    both = [start(clone, *DVC, "repro") for clone in clones[:2]]
    assert [ended(one)[0] for one in both] == [0, 0]
    assert "Stage 'first' is cached - skipping run" in repro(clones[2]) and begun(clones[2]) == []
    locks = {(clone / "dvc.lock").read_text() for clone in clones}
    assert len(locks) == 1 and {(clone / "second").read_text() for clone in clones} == {"second\n"}
    for clone in clones:
        assert_lock_file_is_sound(clone, tmp_path / "cache")


def test_a_second_flow_in_the_folder_waits_and_finds_the_work_done(tmp_path, server):
    project = tiny_project(tmp_path, {"first": writer("first", work=UNTIL_TOLD), "second": writer("second", "first")})
    both = [start_flow(project, server) for _ in range(2)]
    wait_for(lambda: begun(project), 60)
    time.sleep(1)  # the other is at the door now
    (project / "go").touch()
    told = [ended(one) for one in both]
    assert [code for code, _ in told] == [0, 0], told
    assert sorted(said.count("| unchanged") for _, said in told) == [0, 2]
    assert begun(project) == ["first", "second"] and not (project / "clashes").exists()


def test_a_flow_waits_for_a_plain_dvc_which_a_flow_turns_away(tmp_path, server):
    project = tiny_project(tmp_path, {"first": writer("first", work=UNTIL_TOLD), "second": writer("second", "first")})
    plain = start(project, *DVC, "repro")
    wait_for(lambda: begun(project), 60)
    flow = start_flow(project, server)
    for line in flow.stdout:
        if "waits for it" in line:
            break
    assert f"a `dvc` of somebody else is at work here (process {plain.pid}); this run waits for it" in line
    (project / "go").touch()
    assert ended(plain)[0] == 0
    code, said = ended(flow)
    assert code == 0 and said.count("| unchanged") == 2 and begun(project) == ["first", "second"], said

    (project / "go").unlink()
    (project / "first").unlink()
    shutil.rmtree(project / ".dvc/cache")
    flow = start_flow(project, server)
    wait_for(lambda: len(begun(project)) == 3, 60)
    came = time.monotonic()
    code, said = ended(start(project, *DVC, "repro"))
    assert code == 255 and "first' is busy, it is being blocked by:" in said and time.monotonic() - came < at_once()
    (project / "go").touch()
    assert ended(flow)[0] == 0
    assert begun(project)[2:3] == ["first"] and not (project / "clashes").exists()


# --- E9: a dvc that is killed in the midst of a stage ----------------------------------------------------------------

SHARDS = 40
TOKENIZE = "python witness.py --pairs data/pairs --tokenizer models/image_tokenizer --out data/tokens"
WITNESS = """import os, runpy, time
from thousandwords import files
written, is_first = os.open("written", os.O_WRONLY | os.O_CREAT | os.O_APPEND), not os.path.exists("again")
def passing(name):  # as every durable write does, some times
    os.write(written, b"%d\\n" % os.getpid())
    time.sleep(1 if is_first and os.path.exists("again") else 0)
files.failpoint = passing
runpy.run_module("stages.tokenize_pairs", run_name="__main__")
"""


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Pairs in many small shards, and a tokenizer that takes its time."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "own").mkdir()
    for number in range(4 * SHARDS):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        (folder / "own" / f"{number:03d}.png").write_bytes(encode_png(pixels))
        (folder / "own" / f"{number:03d}.txt").write_text(f"Picture {number}")
    settings = {"image_size": SIDE, "min_side": 8, "validation_share": 0.1, "rows_per_shard": 4}
    pairs.write_pairs(pairs.Config(source="folder", path=str(folder / "own"), **settings), 0, folder / "data/pairs")
    components.save(tiny("tokenizers", "dvae"), folder / "models/image_tokenizer")
    return folder


def tokenizing(folder: Path, captioned: Path) -> Path:
    """A project of that one stage, the real one, which notes in `written` who writes."""
    stage = {"cmd": TOKENIZE, "deps": ["data/pairs", "models/image_tokenizer"], "outs": ["data/tokens"]}
    project = tiny_project(folder, {"tokenize_pairs": stage})
    (project / "witness.py").write_text(WITNESS)
    for name in ("data", "models"):
        shutil.copytree(captioned / name, project / name)
    write_json(project / "params.yaml", {"seed": 0, "device": "cpu", "tokens": {"rows_per_shard": 4, "batch_size": 4}})
    return project


def kept(project: Path) -> dict[str, int]:
    """The finished shards and when each was made."""
    found = (project / ".store/tokens").glob("[0-9a-f]*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def kill_and_repeat(project: Path, number: int, shards: int) -> None:
    """Kills `dvc` alone once so many shards are finished, and starts it again at once."""
    first = start(project, *DVC, "repro")
    wait_for(lambda: len(kept(project)) >= shards or first.poll() is not None, 120)
    first.send_signal(number)
    first.wait()
    finished = kept(project)
    (project / "again").touch()  # if the first goes on, then for long
    code, said = ended(start(project, *DVC, "repro"))
    assert code == 0, said
    writers = [pid for pid, _ in itertools.groupby((project / "written").read_text().split())]
    assert len(writers) == len(set(writers)) <= 2  # one after the other
    encoded, of = (int(word) for word in re.search(r"(\d+) of (\d+) shards encoded", said).groups())
    assert of >= SHARDS and encoded <= of - len(finished) and len(finished) >= shards
    assert {key: kept(project)[key] for key in finished} == finished


def test_shards_that_were_finished_when_dvc_was_killed_are_kept_and_two_never_write(tmp_path, captioned):
    kill_and_repeat(tokenizing(tmp_path, captioned), signal.SIGKILL, shards=10)


@pytest.mark.slow
def test_random_kills_of_dvc_cost_no_finished_shard(tmp_path, captioned):
    chance = random.Random(0)
    undisturbed = tokenizing(tmp_path / "undisturbed", captioned)
    repro(undisturbed)
    for trial in range(TRIALS):
        project = tokenizing(tmp_path / str(trial), captioned)
        kill_and_repeat(project, (signal.SIGKILL, signal.SIGTERM)[trial % 2], shards=chance.randrange(SHARDS))
        assert sha256_of(project / "data/tokens/manifest.json") == sha256_of(undisturbed / "data/tokens/manifest.json")
        shutil.rmtree(project)
    print(f"dvc killed in the midst of a stage: {TRIALS} trials, no overlap, 0 finished shards encoded again, all equal")


# --- E10: what a killed dvc leaves -----------------------------------------------------------------------------------

ENTRY = '{"write": {"PLACE/first": {"pid": %d, "cmd": "dvc repro"}}}'
NOBODY = 4_194_304  # above the largest number that a process can have


@pytest.mark.parametrize(
    "left",
    ["", '{"write": {', '{"read": 1}', ENTRY % NOBODY, ENTRY % os.getpid()],
    ids=["empty", "half", "no list of locks", "a dead process", "another process with a dead one's number"],
)
def test_a_list_of_locks_that_is_nobodys_is_taken_away(tmp_path, left):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
    (project / ".dvc/tmp/rwlock").write_text(left.replace("PLACE", str(project)))
    if left == ENTRY % os.getpid():  # what a plain dvc makes of it
        assert ended(start(project, *DVC, "repro"))[0] == 255
    assert repair.repair(project) == ["what a `dvc` that is dead had locked is free again"]
    assert repair.repair(project) == []
    if left in ("", ENTRY % os.getpid()):
        repro(project)


def test_nothing_is_mended_while_a_dvc_writes(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
    (project / "dvc.lock").touch()
    with repair.make_lock(str(project / ".dvc/tmp/lock")):
        assert repair.repair(project) == [] and (project / "dvc.lock").exists()


def test_a_lock_file_that_was_cut_short_costs_no_work(tmp_path, monkeypatch, capsys):
    """Wherever it was cut: what is no list of stages any more is set aside, and DVC finds in its cache what is missing."""
    project = tiny_project(tmp_path, {"first": writer("first", "seed"), "second": writer("second", "first")})
    (project / "seed").touch()
    repro(project)
    whole = (project / "dvc.lock").read_bytes()
    monkeypatch.chdir(project)
    set_aside = []
    for cut in range(0, len(whole), 5):
        Path("dvc.lock").write_bytes(whole[:cut])
        repair.main()
        set_aside.append("dvc.lock was half-written: it is now .dvc/tmp/dvc.lock.2" in capsys.readouterr().out)
        assert Path("dvc.lock").exists() is not set_aside[-1]
        if cut in (0, 120):
            assert "Running stage" not in repro(project)
            assert Path("dvc.lock").read_bytes() == whole
    assert set_aside[0] and not all(set_aside) and begun(project) == ["first", "second"]


def test_a_lock_file_that_git_could_not_merge_is_left_to_its_owner(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
    (project / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> theirs\n")
    with pytest.raises(UserError, match=r"dvc.lock holds the marks of a merge.* Take one side: git checkout --theirs dvc.lock$"):
        repair.repair(project)
    assert (project / "dvc.lock").exists()


def test_a_lock_of_the_index_that_is_nobodys_goes_and_one_of_a_living_git_stays(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
    lock = project / ".git/index.lock"
    lock.touch()
    assert repair.repair(project) == [f"{lock} was nobody's and is removed"] and not lock.exists()
    lock.touch()
    living = subprocess.Popen(["git", "hash-object", "--stdin"], cwd=project, stdin=subprocess.PIPE)
    wait_for(lambda: repair.psutil.Process(living.pid).name() == "git", 10)
    assert repair.repair(project) == [] and lock.exists()
    living.communicate()
    assert repair.repair(project) and not lock.exists()


FILES = "mkdir out; for i in $(seq 300); do echo $(cat seed) $i > out/$i; done; yes $(cat seed) | head -c 60000000 > out/big"


def kill_while_it_commits(project: Path, trial: int, chance: random.Random) -> bool:
    """Kills a `dvc` at a random moment after its stage's command, while it hashes, caches and writes; whether it was undone."""
    (project / "seed").write_text(f"trial {trial}")
    (project / "made").unlink(missing_ok=True)
    dvc = start(project, *DVC, "repro")
    wait_for((project / "made").exists, 60)
    time.sleep(chance.uniform(0, 0.6))
    dvc.kill()
    code, _ = ended(dvc)
    assert not (project / "dvc.lock").exists() or assert_lock_file_is_sound(project) is None
    return code != 0


def assert_it_is_done(project: Path, trial: int) -> None:
    assert_lock_file_is_sound(project)
    assert (project / "out/7").read_text() == f"trial {trial} 7\n" and (project / "after").exists()
    assert (project / "out/big").read_bytes().startswith(f"trial {trial}\n".encode())


COMMITTED = {"make": {"cmd": f"{FILES}; touch made", "deps": ["seed"], "outs": ["out"]}, "after": writer("after", "out")}


def test_a_dvc_killed_while_it_commits_is_in_nobodys_way(tmp_path):
    project = tiny_project(tmp_path, COMMITTED)
    kill_while_it_commits(project, 0, random.Random(2))
    repair.repair(project)
    repro(project)
    assert_it_is_done(project, 0)


@pytest.mark.slow
def test_a_dvc_killed_while_it_commits_is_mended_by_the_next_flow(tmp_path, server):
    project, chance, unfinished = tiny_project(tmp_path, COMMITTED), random.Random(1), 0
    for trial in range(TRIALS):
        unfinished += kill_while_it_commits(project, trial, chance)
        done = run(project, "flows.pipeline", PREFECT_API_URL=server.api)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_it_is_done(project, trial)
    print(f"killed while committing: {TRIALS} trials, {unfinished} unfinished, all mended")
    assert unfinished >= TRIALS / 2


# --- E6: a stage that fails, and goes on -----------------------------------------------------------------------------

# the first attempt dies while it keeps its second checkpoint, and so does the next
ATTEMPT = """ls .ckpt/train_generator/*/ 2>/dev/null | grep -o 'step-.*' | sort | tail -1 >> found
tries=$(wc -l < tries 2>/dev/null || echo 0); echo >> tries
[ $tries -ge 2 ] || export THOUSANDWORDS_FAILPOINT=after-manifest:2
exec python -m stages.train_generator """


@pytest.mark.slow
def test_each_retry_goes_on_from_the_last_checkpoint_and_ends_as_if_none_had_failed(tmp_path, server):
    nursery = Nursery()
    never = Never(tmp_path / "never", nursery, steps=30)
    nursery.close()
    folder = never.workplace(tmp_path / "run", "train_generator")
    (folder / "attempt.sh").write_text(ATTEMPT + " ".join(WORK["train_generator"].argv))
    stage = {"cmd": "sh attempt.sh", "outs": list(WORK["train_generator"].leaves)}
    project = tiny_project(folder, {"train": stage}, {"stages": {"train": {"retries": 2, "retry_seconds": 0.5}}})

    done = run(project, "flows.pipeline", PREFECT_API_URL=server.api)

    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.rstrip("/") for line in (project / "found").read_text().split()] == ["step-00000010", "step-00000020"]
    assert left_by(project, "train_generator") == never.left["train_generator"]
    train = server.task_runs(server.runs()[-1]["id"])["train"]
    assert train["run_count"] == 3 and planned_waits(server, train) == pytest.approx([0.5, 1], rel=0.2)
