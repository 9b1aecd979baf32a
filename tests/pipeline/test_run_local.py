"""`python -m flows.run_local` (`make run`): stages in parallel, with the same result as `dvc repro`."""

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

from flows import run_local
from stages.runtime import launch
from tests.helpers.prefect_server import environment, run, tiny_project, wait_for

MEET = (
    "touch {own}.begun; i=0; until [ -e {other}.begun ]; do i=$((i+1)); [ $i -lt 400 ] || exit 3; sleep .05; done; "
    "cat a > {out}"
)


SAVING = """if True:
    import signal, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores SIGINT
    try:
        open("begun", "w")
        time.sleep(300)
    finally:
        time.sleep(1)
        open("saved", "w")
"""


def meeting() -> dict[str, dict]:
    """Two stages that end only if both run at the same time, between a first and a last stage."""
    sides = {
        name: {"cmd": MEET.format(own=name, other=other, out=out), "deps": ["a"], "outs": [out]}
        for name, other, out in (("left", "right", "b"), ("right", "left", "c"))
    }
    last = {"cmd": "cat b c > d; printenv THOUSANDWORDS_PIPELINE > e", "deps": ["b", "c"], "outs": ["d", "e"]}
    return {
        "first": {"cmd": "printenv THOUSANDWORDS_PIPELINE > f; echo 1 > a", "outs": ["a", "f"]},
        **sides,
        "last": last,
    }


def start_run(project: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "flows.run_local"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project, env=environment(project / ".prefect"), **pipes)


def test_independent_stages_run_in_parallel_and_a_second_run_runs_nothing(tmp_path):
    project = tiny_project(tmp_path, meeting())
    result = run(project, "flows.run_local")
    assert result.returncode == 0 and re.fullmatch(r"4 stages ran in \d+ s\n", result.stdout), result.stderr
    assert (project / "d").read_text() == "1\n1\n"
    assert (project / "e").read_text() == (project / "f").read_text()  # one MLflow parent run for all stages
    assert run(project, "dvc", "status").stdout == "Data and pipelines are up to date.\n"
    assert run(project, "flows.run_local").stdout == "nothing has changed: every stage is up to date\n"
    (project / "c").unlink()
    again = run(project, "flows.run_local").stdout  # d is the same as before
    assert re.fullmatch(r"1 stage ran in \d+ s; unchanged: first, left, last\n", again)


def test_a_changed_stage_reruns_the_stages_that_need_it(tmp_path):
    project, stages = tiny_project(tmp_path, meeting()), meeting()
    assert run(project, "flows.run_local").returncode == 0
    stages["first"]["cmd"] = "printenv THOUSANDWORDS_PIPELINE > f; echo 2 > a"
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert run(project, "flows.run_local").stdout.startswith("4 stages ran")
    assert (project / "d").read_text() == "2\n2\n"


def test_with_a_gpu_or_parallel_1_stages_run_one_by_one(monkeypatch, tmp_path):
    project = tiny_project(tmp_path, meeting(), {"parallel": 3})
    monkeypatch.chdir(project)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_local.max_parallel(["first"]) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert run_local.max_parallel(["first"]) == 1
    (project / "flows/workers/placement.yaml").write_text("parallel: 1")
    result = run(project, "flows.run_local")
    assert result.returncode == 1
    assert "run: stage left failed with code 3. Finished stages are kept" in result.stderr, result.stderr


def test_a_failure_is_reported_at_once_and_stops_the_other_stages_which_the_next_run_runs(tmp_path):
    stages = meeting()
    stages["left"]["cmd"] = "until [ -e right.begun ]; do sleep .05; done; [ -e fixed ] || exit 2; cat a > b"
    stages["right"]["cmd"] = "touch right.begun; [ -e fixed ] || sleep 300; cat a > c"
    project = tiny_project(tmp_path, stages)
    result = run(project, "flows.run_local")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("run: stage left failed with code 2. ")
    assert not [process for process in psutil.process_iter() if works_in(process, project)]
    (project / "fixed").touch()
    assert run(project, "flows.run_local").stdout.endswith("; unchanged: first\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_leaves_no_process_and_gives_a_stage_time_to_save(tmp_path, number):
    stages = meeting()
    stages["left"]["cmd"], stages["right"]["cmd"] = f"{sys.executable} saving.py", "sleep 300"
    project = tiny_project(tmp_path, stages)
    (project / "saving.py").write_text(SAVING)
    running = start_run(project)
    wait_for((project / "begun").exists, 60)
    running.send_signal(number)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + number, output
    assert (project / "saved").exists(), output
    assert not [process for process in psutil.process_iter() if works_in(process, project)]
    stages["left"]["cmd"], stages["right"]["cmd"] = "cat a > b", "cat a > c"
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert run(project, "flows.run_local").returncode == 0  # the locks of DVC are free again


def works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (8, 4), (9, 4)])
def test_stages_trained_in_parallel_take_half_of_the_cores(monkeypatch, cores, expected):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    launch.share_cores()
    assert threads == [expected]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # torchrun has set the threads of its processes already
    launch.share_cores()
    assert threads == [expected]
