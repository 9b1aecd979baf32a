"""`python -m flows.run`, what `make run` calls: stages side by side, and the project as `dvc repro` would leave it."""
from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from flows import _screen
from flows import run as side_by_side
from stages import _launch
from stages._progress import Bar
from tests.orchestra import environment, run, tiny_project, wait_for

MEET = (
    "touch {own}.begun; i=0; until [ -e {other}.begun ]; do i=$((i+1)); [ $i -lt 400 ] || exit 3; sleep .05; done; "
    "cat a > {out}"
)


SAVING = """if True:
    import signal, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    try:
        open("begun", "w")
        time.sleep(300)
    finally:
        time.sleep(1)
        open("saved", "w")
"""


def meeting() -> dict[str, dict]:
    """Two stages that end only if both are at work at the same time, between one before them and one after."""
    sides = {
        name: {"cmd": MEET.format(own=name, other=other, out=out), "deps": ["a"], "outs": [out]}
        for name, other, out in (("left", "right", "b"), ("right", "left", "c"))
    }
    last = {"cmd": "cat b c > d; printenv THOUSANDWORDS_PIPELINE > e", "deps": ["b", "c"], "outs": ["d", "e"]}
    return {"first": {"cmd": "printenv THOUSANDWORDS_PIPELINE > f; echo 1 > a", "outs": ["a", "f"]}, **sides, "last": last}


def begin(project: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "flows.run"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=project, env=environment(project / ".prefect"), **piped)


def test_stages_that_need_nothing_of_each_other_run_side_by_side_and_then_nothing_does(tmp_path):
    project = tiny_project(tmp_path, meeting())
    done = run(project, "flows.run")
    assert done.returncode == 0 and re.fullmatch(r"4 stages ran in \d+ s\n", done.stdout), done.stderr
    assert (project / "d").read_text() == "1\n1\n"
    assert (project / "e").read_text() == (project / "f").read_text()  # one run in MLflow for all of its stages
    assert run(project, "dvc", "status").stdout == "Data and pipelines are up to date.\n"
    assert run(project, "flows.run").stdout == "nothing has changed: every stage is up to date\n"
    (project / "c").unlink()
    again = run(project, "flows.run").stdout  # d has come out the same
    assert re.fullmatch(r"1 stage ran in \d+ s; unchanged: first, left, last\n", again)


def test_what_a_stage_makes_anew_reaches_those_that_had_nothing_to_do_before(tmp_path):
    project, stages = tiny_project(tmp_path, meeting()), meeting()
    assert run(project, "flows.run").returncode == 0
    stages["first"]["cmd"] = "printenv THOUSANDWORDS_PIPELINE > f; echo 2 > a"
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert run(project, "flows.run").stdout.startswith("4 stages ran")
    assert (project / "d").read_text() == "2\n2\n"


def test_with_a_gpu_or_one_place_they_take_turns(monkeypatch, tmp_path):
    project = tiny_project(tmp_path, meeting(), {"parallel": 3})
    monkeypatch.chdir(project)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert side_by_side.count_places(["first"]) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert side_by_side.count_places(["first"]) == 1
    (project / "flows/placement.yaml").write_text("parallel: 1")
    done = run(project, "flows.run")
    assert done.returncode == 1
    assert "run: stage left failed with code 3. What was made before it stays" in done.stderr, done.stderr


def test_a_failure_is_told_at_once_and_stops_the_others_which_the_next_run_takes_up(tmp_path):
    stages = meeting()
    stages["left"]["cmd"] = "until [ -e right.begun ]; do sleep .05; done; [ -e mended ] || exit 2; cat a > b"
    stages["right"]["cmd"] = "touch right.begun; [ -e mended ] || sleep 300; cat a > c"
    project = tiny_project(tmp_path, stages)
    done = run(project, "flows.run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("run: stage left failed with code 2. ")
    assert not [one for one in psutil.process_iter() if works_in(one, project)]
    (project / "mended").touch()
    assert run(project, "flows.run").stdout.endswith("; unchanged: first\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_leaves_no_process_and_a_stage_has_time_to_save(tmp_path, number):
    stages = meeting()
    stages["left"]["cmd"], stages["right"]["cmd"] = f"{sys.executable} saving.py", "sleep 300"
    project = tiny_project(tmp_path, stages)
    (project / "saving.py").write_text(SAVING)
    running = begin(project)
    wait_for((project / "begun").exists, 60)
    running.send_signal(number)
    told, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + number, told
    assert (project / "saved").exists(), told
    assert not [one for one in psutil.process_iter() if works_in(one, project)]
    stages["left"]["cmd"], stages["right"]["cmd"] = "cat a > b", "cat a > c"
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert run(project, "flows.run").returncode == 0  # what DVC had locked is free again


def works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_the_screen_makes_bars_of_the_lines_of_a_stage_and_shows_the_others(monkeypatch, capsys):
    bar = Bar("train_generator", 1200)
    bar.at(400)
    line = bar._line(401, "loss 2.1034", bar.started + 2.0)
    found = _screen.PROGRESS.fullmatch(line).groupdict()
    assert list(found.values()) == ["train_generator", "401", "1200", "step", "loss 2.1034"]
    screen = _screen.Screen()
    screen.is_terminal = True
    screen.begins("train_generator")
    screen.line("train_generator", line)
    (shown,) = screen.bars["train_generator"].values()
    assert (shown.n, shown.total) == (401, 1200)
    screen.line("train_generator", "a warning")
    screen.ends("train_generator")
    told = capsys.readouterr().err
    assert "33%" in told and "loss 2.1034" in told and "train_generator: a warning\n" in told


def test_in_a_log_each_line_names_its_stage_and_what_dvc_says_every_time_is_left_out(capsys):
    screen = _screen.Screen()
    for line in ("Running stage 'a':", "> python -m stages.a", "a: 1/2 (50 %), 1.0 row/s, 0:01 left", "odd", "ERROR: failed",
                 "Stage 'a' didn't change, skipping"):  # fmt: skip
        screen.line("a", line)
    assert capsys.readouterr().err == "a: 1/2 (50 %), 1.0 row/s, 0:01 left\na: odd\na: ERROR: failed\n"


@pytest.mark.parametrize(("cores", "taken"), [(1, 1), (2, 1), (8, 4), (9, 4)])
def test_what_is_trained_side_by_side_takes_half_of_the_cores(monkeypatch, cores, taken):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    _launch.share_cores()
    assert threads == [taken]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # torchrun's processes have had theirs from whoever started it
    _launch.share_cores()
    assert threads == [taken]
