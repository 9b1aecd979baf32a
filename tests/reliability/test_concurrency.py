"""Two runs in one folder, and leftovers of a killed `dvc`: rows E6, E8 to E10 of the reliability plan.

The slow tests are many trials of the same kind, THOUSANDWORDS_KILLS of each; they print results.
"""

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

from flows.dvc import repair
from stages import tokenize_pairs
from stages.runtime.stage import Stage
from tests.helpers.kill import ForkServer
from tests.helpers.prefect_server import environment, run, tiny_project, wait_for
from tests.helpers.tiny_models import SIDE, tiny
from tests.pipeline.test_data_stages import FakeTracker
from tests.reliability.test_kills import WORK, ReferenceRun, outputs_of
from tests.services.test_prefect_flows import planned_waits
from thousandwords import components
from thousandwords.core.errors import UserError
from thousandwords.core.files import sha256_of, write_json
from thousandwords.data.images import encode_png
from thousandwords.ingest import ingest
from thousandwords.ingest.config import DataConfig

TRIALS = int(os.environ.get("THOUSANDWORDS_KILLS", "20"))
# the kernel says who writes: a separate lock for each stage, a line for each stage that begins, and one for each clash
PROBE = "exec 9>>{name}.probe; flock -n 9 || echo {name} >>clashes; echo {name} >>begun; {work}"
MANY = pytest.mark.parametrize("trials", [1, pytest.param(TRIALS, marks=pytest.mark.slow)])
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


def start_flow(project: Path, server) -> subprocess.Popen:
    return start(project, sys.executable, "-m", "flows.pipeline", PREFECT_API_URL=server.api)


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


# --- E8: two at once -------------------------------------------------------------------------------------------------


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
        with open(clone / ".dvc/config", "a") as config:
            config.write(
                f"[cache]\n    dir = {tmp_path}/cache\n    type = hardlink,copy\n    shared = group\n"
            )
    both = [start(clone, *DVC, "repro") for clone in clones[:2]]
    assert [wait(process)[0] for process in both] == [0, 0]
    assert "Stage 'first' is cached - skipping run" in repro(clones[2]) and begun(clones[2]) == []
    locks = {(clone / "dvc.lock").read_text() for clone in clones}
    assert len(locks) == 1 and {(clone / "second").read_text() for clone in clones} == {"second\n"}
    for clone in clones:
        assert_lock_file_is_sound(clone, tmp_path / "cache")


@pytest.mark.slow  # a minute; the next test has a flow that waits, too
def test_a_second_flow_in_the_folder_waits_and_finds_all_stages_done(tmp_path, server):
    project = tiny_project(
        tmp_path, {"first": writer("first", work=UNTIL_GO), "second": writer("second", "first")}
    )
    both = [start_flow(project, server) for _ in range(2)]
    wait_for(lambda: begun(project), 60)
    time.sleep(1)  # the other flow waits now
    (project / "go").touch()
    results = [wait(process) for process in both]
    assert [code for code, _ in results] == [0, 0], results
    assert sorted(output.count("| unchanged") for _, output in results) == [0, 2]
    assert begun(project) == ["first", "second"] and not (project / "clashes").exists()


def test_a_flow_waits_for_a_plain_dvc_but_a_plain_dvc_does_not_wait_for_a_flow(tmp_path, server):
    project = tiny_project(
        tmp_path, {"first": writer("first", work=UNTIL_GO), "second": writer("second", "first")}
    )
    dvc = start(project, *DVC, "repro")
    wait_for(lambda: begun(project), 60)
    flow = start_flow(project, server)
    for line in flow.stdout:
        if "waits for it" in line:
            break
    assert f"another `dvc` is running in this folder (process {dvc.pid}); this run waits for it" in line
    (project / "go").touch()
    assert wait(dvc)[0] == 0
    code, output = wait(flow)
    assert code == 0 and output.count("| unchanged") == 2 and begun(project) == ["first", "second"], output

    (project / "go").unlink()
    (project / "first").unlink()
    shutil.rmtree(project / ".dvc/cache")
    flow = start_flow(project, server)
    wait_for(lambda: len(begun(project)) == 3, 60)
    began = time.monotonic()
    code, output = wait(start(project, *DVC, "repro"))
    assert (
        code == 255
        and "first' is busy, it is being blocked by:" in output
        and time.monotonic() - began < max_seconds()
    )
    (project / "go").touch()
    assert wait(flow)[0] == 0
    assert begun(project)[2:3] == ["first"] and not (project / "clashes").exists()


# --- E9: a dvc killed in the middle of a stage ----------------------------------------------------------------

SHARDS = 40
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


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Pairs in many small shards, and a tokenizer."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "own").mkdir()
    for number in range(4 * SHARDS):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        (folder / "own" / f"{number:03d}.png").write_bytes(encode_png(pixels))
        (folder / "own" / f"{number:03d}.txt").write_text(f"Image {number}")
    settings = {"image_size": SIDE, "min_side": 8, "validation_share": 0.1, "rows_per_shard": 4}
    ingest.write_pairs(
        DataConfig(source="folder", path=str(folder / "own"), **settings), 0, folder / "data/pairs"
    )
    components.save(tiny("image_tokenizers", "dvae"), folder / "models/image_tokenizer")
    return folder


def tokenizing(folder: Path, captioned: Path) -> Path:
    """A project with that one real stage, which records in `written` which process writes."""
    stage = {"cmd": TOKENIZE, "deps": ["data/pairs", "models/image_tokenizer"], "outs": ["data/tokens"]}
    project = tiny_project(folder, {"tokenize_pairs": stage})
    (project / "witness.py").write_text(WITNESS)
    for name in ("data", "models"):
        shutil.copytree(captioned / name, project / name)
    write_json(project / "params.yaml", SETTINGS)
    return project


def finished_shards(project: Path) -> dict[str, int]:
    """{finished shard: time of its creation}"""
    manifests = (project / ".store/tokens").glob("[0-9a-f]*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in manifests}


def kill_and_repeat(project: Path, number: int, shards: int) -> None:
    """Kill `dvc` alone as soon as so many shards are finished, and start it again at once."""
    first = start(project, *DVC, "repro")
    wait_for(lambda: len(finished_shards(project)) >= shards or first.poll() is not None, 120)
    first.send_signal(number)
    first.wait()
    finished = finished_shards(project)
    (project / "again").touch()  # if the first run continues, then slowly
    code, output = wait(start(project, *DVC, "repro"))
    assert code == 0, output
    writers = [pid for pid, _ in itertools.groupby((project / "written").read_text().split())]
    assert len(writers) == len(set(writers)) <= 2  # one after the other
    encoded, total = (int(number) for number in re.search(r"(\d+) of (\d+) shards encoded", output).groups())
    assert total >= SHARDS and encoded <= total - len(finished) and len(finished) >= shards
    assert {key: finished_shards(project)[key] for key in finished} == finished


@MANY
def test_shards_finished_before_dvc_was_killed_are_kept_and_two_processes_never_write(
    tmp_path, captioned, trials, monkeypatch
):
    rng = random.Random(0)
    undisturbed = tokenizing(tmp_path / "undisturbed", captioned)
    with monkeypatch.context() as patch:
        patch.chdir(undisturbed)
        context = Stage("tokenize_pairs", SETTINGS, FakeTracker())
        paths = map(Path, ("data/pairs", "models/image_tokenizer", "data/tokens"))
        tokenize_pairs.tokenize_pairs(*paths, context)
    for trial in range(trials):
        project = tokenizing(tmp_path / str(trial), captioned)
        kill_and_repeat(project, (signal.SIGKILL, signal.SIGTERM)[trial % 2], shards=rng.randrange(SHARDS))
        manifests = [folder / "data/tokens/manifest.json" for folder in (project, undisturbed)]
        assert sha256_of(manifests[0]) == sha256_of(manifests[1])
        shutil.rmtree(project)
    print(f"dvc killed in a stage: {trials} trials, no overlap, 0 finished shards encoded again, all equal")


# --- E10: what a killed dvc leaves behind -----------------------------------------------------------------------------------

ENTRY = '{"write": {"PLACE/first": {"pid": %d, "cmd": "dvc repro"}}}'
UNUSED_PID = 4_194_304  # above the largest process number


@pytest.mark.parametrize(
    "left",
    ["", '{"write": {', '{"read": 1}', ENTRY % UNUSED_PID, ENTRY % os.getpid()],
    ids=[
        "empty",
        "half",
        "not a list of locks",
        "a dead process",
        "another process with a dead one's number",
    ],
)
def test_a_list_of_locks_without_a_live_owner_is_removed(tmp_path, left):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
    (project / ".dvc/tmp/rwlock").write_text(left.replace("PLACE", str(project)))
    if left == ENTRY % os.getpid():  # a plain dvc fails
        assert wait(start(project, *DVC, "repro"))[0] == 255
    assert repair.repair(project) == ["what a dead `dvc` had locked is free again"]
    assert repair.repair(project) == []
    if left in ("", ENTRY % os.getpid()):
        repro(project)


def test_nothing_is_repaired_while_a_dvc_writes(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
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
        moved_away.append(
            "dvc.lock was half-written: it is now .dvc/tmp/dvc.lock.2" in capsys.readouterr().out
        )
        assert Path("dvc.lock").exists() is not moved_away[-1]
        if cut in (0, 120):
            assert "Running stage" not in repro(project)
            assert Path("dvc.lock").read_bytes() == whole
    assert moved_away[0] and not all(moved_away) and begun(project) == ["first", "second"]


def test_a_lock_file_with_merge_conflicts_is_left_to_the_user(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
    (project / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> theirs\n")
    with pytest.raises(
        UserError,
        match=r"dvc.lock has merge conflict markers.* Take one side: git checkout --theirs dvc.lock$",
    ):
        repair.repair(project)
    assert (project / "dvc.lock").exists()


def test_an_index_lock_without_an_owner_is_removed_and_one_of_a_live_git_stays(tmp_path):
    project = tiny_project(tmp_path, {"first": writer("first")})
    (project / ".dvc/tmp").mkdir()
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
    """Kill a `dvc` at a random moment after its stage's command, while it hashes, caches and writes.

    Whether it had not ended.
    """
    (project / "seed").write_text(f"trial {trial}")
    (project / "made").unlink(missing_ok=True)
    dvc = start(project, *DVC, "repro")
    wait_for((project / "made").exists, 60)
    time.sleep(rng.uniform(0, 0.6))
    dvc.kill()
    code, _ = wait(dvc)  # dvc.lock may be half-written now: the repair that follows sets it aside
    return code != 0


def assert_it_is_done(project: Path, trial: int) -> None:
    assert_lock_file_is_sound(project)
    assert (project / "out/7").read_text() == f"trial {trial} 7\n" and (project / "after").exists()
    assert (project / "out/big").read_bytes().startswith(f"trial {trial}\n".encode())


COMMITTED = {
    "make": {"cmd": f"{FILES}; touch made", "deps": ["seed"], "outs": ["out"]},
    "after": writer("after", "out"),
}


@MANY
def test_a_dvc_killed_while_it_commits_does_not_block_the_next_run(tmp_path, trials):
    project, rng, unfinished = tiny_project(tmp_path, COMMITTED), random.Random(1), 0
    for trial in range(trials):
        unfinished += kill_while_it_commits(project, trial, rng)
        result = run(project, "flows.run_local")
        assert result.returncode == 0, result.stdout + result.stderr
        assert_it_is_done(project, trial)
    print(f"killed while committing: {trials} trials, {unfinished} unfinished, all repaired")
    assert unfinished >= trials // 2


# --- E6: a stage that fails and resumes -----------------------------------------------------------------------------

# the first two attempts die while they save their second checkpoint
ATTEMPT = """ls .ckpt/train_generator/*/ 2>/dev/null | grep -o 'step-.*' | sort | tail -1 >> found
tries=$(wc -l < tries 2>/dev/null || echo 0); echo >> tries
[ $tries -ge 2 ] || export THOUSANDWORDS_FAILPOINT=after-manifest:2
exec python -m stages.train_generator """


@pytest.mark.slow
def test_each_retry_resumes_from_the_last_checkpoint_and_gives_the_same_result(tmp_path, server):
    fork_server = ForkServer()
    reference = ReferenceRun(tmp_path / "never", fork_server, steps=30)
    fork_server.close()
    folder = reference.new_folder(tmp_path / "run", "train_generator")
    (folder / "attempt.sh").write_text(ATTEMPT + " ".join(WORK["train_generator"].argv))
    stage = {"cmd": "sh attempt.sh", "outs": list(WORK["train_generator"].outputs)}
    project = tiny_project(
        folder, {"train": stage}, {"stages": {"train": {"retries": 2, "retry_seconds": 0.5}}}
    )

    result = run(project, "flows.pipeline", PREFECT_API_URL=server.api)

    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.rstrip("/") for line in (project / "found").read_text().split()] == [
        "step-00000010",
        "step-00000020",
    ]
    assert outputs_of(project, "train_generator") == reference.outputs["train_generator"]
    train = server.task_runs(server.runs()[-1]["id"])["train"]
    assert train["run_count"] == 3 and planned_waits(server, train) == pytest.approx([0.5, 1], rel=0.2)
