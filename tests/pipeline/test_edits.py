"""What is edited while a stage runs under DVC: dvc.lock never names a setting, code or data that the stage did not read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.runtime import inputs
from tests.helpers.prefect_server import environment, run, tiny_project, wait_for

# a stage of this project's own runtime that waits until it may end
PROGRAM = """
import time
from argparse import Namespace
from pathlib import Path
from stages.runtime import stage as runtime
runtime.open_tracker = lambda name, params: runtime.NoTracker()
options = Namespace(params=Path("params.yaml"), record=Path("record.json"), out=Path("out"))
with runtime.stage("work", options) as context:
    Path("begun").touch()
    while not Path("end").exists():
        time.sleep(0.02)
    Path("out").write_text(str(context.params["size"]))
"""
STAGE = {
    "cmd": f"{sys.executable} program.py",
    "deps": ["own", "code/${kind}.py"],
    "params": ["size", "model"],
    "outs": ["out"],
}
PARAMS = {"size": 1, "model": {"steps": 400}, "kind": "a", "unused": 1}


@pytest.fixture
def project(tmp_path) -> Path:
    tiny_project(tmp_path, {"work": STAGE})
    for name, text in {"own/image": "1", "code/a.py": "x = 1", "program.py": PROGRAM}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    write_params(tmp_path)
    return tmp_path


def write_params(project: Path, **changes: object) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **changes}))


def test_under_dvc_a_stage_whose_setting_was_edited_is_not_recorded_and_runs_again(project):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    own, command = environment(project / ".prefect"), [sys.executable, "-m", "dvc", "repro"]
    running = subprocess.Popen(command, cwd=project, env=own, **pipes)
    wait_for((project / "begun").exists, 120)
    write_params(project, model={"steps": 500})
    (project / "end").touch()
    output = running.communicate(timeout=120)[0]
    assert "work: params.yaml: model.steps (400, now 500) changed while this stage ran" in output
    assert "so its result is not recorded. Run the same again" in output
    assert running.returncode and not (project / "dvc.lock").exists()
    again = run(project, "dvc", "repro")
    assert again.returncode == 0 and "Running stage 'work'" in again.stdout, again.stderr
    assert "steps: 500" in (project / "dvc.lock").read_text()


def test_an_edit_in_the_last_moment_is_noticed(project):
    """After the stage has compared its inputs itself, while the process ends."""
    late = 'import atexit\natexit.register(lambda: Path("params.yaml").write_text("{size: 2, model: 0, kind: a}"))\n'
    (project / "program.py").write_text(PROGRAM + late)
    (project / "end").touch()
    own = {**environment(project), "DVC_STAGE": "work"}
    command = [sys.executable, "program.py"]
    ended = subprocess.run(command, cwd=project, env=own, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(
        "work: params.yaml: size (1, now 2) and 1 more changed while this stage ran"
    )


def replace(name: str, text: str):
    return lambda project: (project / name).write_text(text)


def change(**changes: object):
    return lambda project: write_params(project, **changes)


@pytest.fixture
def pinned(project, monkeypatch) -> Path:
    """The project, as a stage sees it that DVC has just started."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_STAGE", "work")
    monkeypatch.delenv("THOUSANDWORDS_PINNED", raising=False)
    inputs.pin()
    yield project
    monkeypatch.undo()
    os.environ.pop("THOUSANDWORDS_PINNED", None)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (change(model={"steps": 500}), "params.yaml: model.steps (400, now 500)"),
        (change(size=2, model={}), "params.yaml: size (1, now 2) and 1 more"),
        (change(kind="b"), "code/a.py"),
        (replace("params.yaml", "size: ["), "params.yaml: size (1, now None) and 3 more"),
        (replace("code/a.py", "x = 2"), "code/a.py"),
        (replace("own/image", "another"), "own/image"),
        (replace("own/more", "a second image"), "own/more"),
        (lambda project: (project / "own/image").unlink(), "own/image"),
    ],
)
def test_every_setting_code_and_data_of_the_stage_is_compared(pinned, edit, named):
    edit(pinned)
    with pytest.raises(inputs.InputsChanged) as caught:
        inputs.check_inputs()
    assert str(caught.value).startswith(f"{named} changed while this stage ran")


def test_edits_of_what_the_stage_does_not_depend_on_and_saves_without_a_change_are_no_matter(pinned):
    write_params(pinned, unused=2)
    (pinned / "code/b.py").write_text("y = 1")
    (pinned / "code/a.py").write_text("x = 1")
    inputs.check_inputs()


def test_processes_of_a_stage_compare_with_what_the_first_one_read(pinned, monkeypatch):
    monkeypatch.setenv("THOUSANDWORDS_PINNED", "0" * 64)
    with pytest.raises(inputs.InputsChanged, match="^a setting or file changed while this stage ran"):
        inputs.check_inputs()
