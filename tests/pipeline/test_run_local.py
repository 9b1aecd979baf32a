"""`python -m flows.run_local` (`make run`): stages in parallel, with the same result as `dvc repro`."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from flows import run_local, status
from flows.dvc import graph
from stages.runtime import program
from tests.helpers.images import write
from tests.helpers.prefect_server import processes_in, run, tiny_project
from tests.helpers.tiny_models import flipped
from thousandwords.core.errors import UserError

MEET = (
    "touch {own}.begun; i=0; until [ -e {other}.begun ]; do i=$((i+1)); [ $i -lt {tries} ] || exit 3; sleep .05; done; "
    "cat a > {out}"
)


def meeting(seconds: int = 20) -> dict[str, dict]:
    """Two stages that end only if both run at the same time, between a first and a last stage. A stage waits so many
    seconds for the other one."""
    left = MEET.format(own="left", other="right", out="b", tries=20 * seconds)
    right = MEET.format(own="right", other="left", out="c", tries=20 * seconds)
    last = "cat b c > d; printenv THOUSANDWORDS_PIPELINE > e"
    return {
        "first": {"cmd": "printenv THOUSANDWORDS_PIPELINE > f; echo 1 > a", "outs": ["a", "f"]},
        "left": {"cmd": left, "deps": ["a"], "outs": ["b"]},
        "right": {"cmd": right, "deps": ["a"], "outs": ["c"]},
        "last": {"cmd": last, "deps": ["b", "c"], "outs": ["d", "e"]},
    }


def test_independent_stages_run_in_parallel_and_then_only_what_changed(tmp_path):
    stages = meeting()
    project = tiny_project(tmp_path, stages)
    result = run(project, "flows.run_local")
    assert result.returncode == 0 and re.fullmatch(r"4 stages ran in \d+ s\n", result.stdout), result.stderr
    assert (project / "d").read_text() == "1\n1\n"
    assert (project / "e").read_text() == (project / "f").read_text()  # one MLflow parent run for all stages
    assert run(project, "dvc", "status").stdout == "Data and pipelines are up to date.\n"
    assert run(project, "flows.run_local").stdout == "nothing has changed: every stage is up to date\n"
    (project / "c").unlink()  # made again, and the same as before
    stages["left"]["cmd"] = "echo 2 > b"
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    again = run(project, "flows.run_local").stdout
    assert re.fullmatch(r"3 stages ran in \d+ s; unchanged: first\n", again)
    assert (project / "d").read_text() == "2\n1\n"


def test_with_a_gpu_or_parallel_1_stages_run_one_by_one(monkeypatch, tmp_path):
    project = tiny_project(tmp_path, meeting(seconds=2), {"parallel": 3})
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
    assert processes_in(project) == []
    (project / "fixed").touch()
    assert run(project, "flows.run_local").stdout.endswith("; unchanged: first\n")


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (8, 4), (9, 4)])
def test_stages_trained_in_parallel_take_half_of_the_cores(monkeypatch, cores, expected):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    program.share_cores()
    assert threads == [expected]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # torchrun has set the threads of its processes already
    program.share_cores()
    assert threads == [expected]


MODEL = {
    "train": {
        "cmd": "mkdir -p model; echo weights > model/a; echo more > model/b; echo 1 > curve",
        "deps": ["data"],
        "outs": ["model", "curve"],
    },
    "package": {"cmd": "cp model/a package", "deps": ["model"], "outs": ["package"]},
}


def flip(path: Path) -> None:
    """Flip one bit and keep the time, as a failing disk does."""
    status, data = path.stat(), path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(flipped(data, len(data) // 2))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(status.st_mode)


def objects(project: Path) -> dict[bytes, Path]:
    """{content: its file in DVC's cache}"""
    return {path.read_bytes(): path for path in (project / ".dvc/cache/files").rglob("*") if path.is_file()}


def is_whole(project: Path) -> bool:
    texts = {"model/a": "weights\n", "model/b": "more\n", "curve": "1\n", "package": "weights\n"}
    return all((project / name).read_text() == text for name, text in texts.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = tiny_project(tmp_path_factory.mktemp("finished"), MODEL)
    (project / "data").write_text("1")
    assert run(project, "flows.run_local").returncode == 0
    return project


@pytest.fixture
def project(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "project"))


@pytest.mark.parametrize("content", [b"weights\n", b"[{"])
def test_what_is_damaged_in_the_cache_is_noticed_when_it_is_taken_and_made_again(project, content):
    damaged = next(path for text, path in objects(project).items() if text.startswith(content))
    flip(damaged)
    shutil.rmtree(project / "model")
    (project / "package").unlink()
    result = run(project, "flows.run_local")
    assert result.returncode == 0 and is_whole(project), result.stdout + result.stderr
    run(project, "scripts.verify_artifacts", "--repair")  # DVC keeps a list of files that it cannot read
    assert run(project, "scripts.verify_artifacts").returncode == 0 and damaged.is_file()


def test_make_repair_fixes_what_make_verify_names(project):
    cache = objects(project)
    damaged = [project / "model/a", project / "curve", cache[b"more\n"], cache[b"1\n"]]
    for path in damaged:
        flip(path)
    verified = run(project, "scripts.verify_artifacts")
    lines = verified.stderr.splitlines()
    assert verified.returncode == 1 and all(line.endswith(" Run: make repair") for line in lines), lines
    assert all(any(str(path.relative_to(project)) in line for line in lines) for path in damaged[1:]), lines
    repaired = run(project, "scripts.verify_artifacts", "--repair").stdout
    assert repaired.count("repaired: ") == 4, repaired
    assert run(project, "flows.run_local").returncode == 0 and is_whole(project)
    assert run(project, "scripts.verify_artifacts").returncode == 0
    assert all(path.is_file() for path in damaged)


READING = {"train": {"cmd": "cp a b", "deps": ["${data.path}"], "params": ["data"], "outs": ["b"]}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"params.yaml": "seed: 0\ndata: [\n"}, "params.yaml is not valid YAML: while parsing a flow "),
        ({"params.yaml": "- 1\n"}, "params.yaml should be a set of named sections, found list"),
        ({"params.yaml": b"\xff\xfe\x00"}, "params.yaml is not valid YAML: "),
        ({}, "params.yaml is missing. Start from one of presets/: cp presets/default.yaml params.yaml"),
        ({"params.yaml/a": ""}, "params.yaml is a folder, not a file. Start from one of presets/: cp presets/"),
        ({"params.yaml": "data: {}\n"}, "params.yaml: data.path is null or absent, but dvc.yaml watches"),
        ({"params.yaml": "data: {path: a}\ndata: {path: b}\n"}, "DVC cannot read this project: .*params.yaml"),
        ({"params.yaml": "data: {path: a}\n", "dvc.yaml": "["}, "DVC cannot read this project: .*dvc.yaml"),
    ],
)  # fmt: skip
def test_settings_or_a_graph_that_cannot_be_read_are_one_sentence(tmp_path, monkeypatch, files, message):
    write(tiny_project(tmp_path, READING), files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        graph.read_graph()
    assert "\n" not in str(caught.value)
    assert status.stages()[0].startswith("unknown: ")
