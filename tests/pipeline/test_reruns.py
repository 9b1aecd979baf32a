"""A finished pipeline, run again: after a changed setting, as a flow, with a wrong setting, after a stop, twice at once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.paths import ROOT
from tests.helpers.smoke_project import change, command, environment, new_project, ran, repro
from thousandwords.core.files import sha256_of

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = new_project(tmp_path_factory.mktemp("project"))
    repro(folder)
    return folder


def test_one_changed_setting_reruns_what_it_touches_and_going_back_runs_nothing(project):
    change(project, "evaluation.report_images", 3)
    assert ran(repro(project)) == ["check_params", "evaluate"]
    change(project, "evaluation.report_images", 4)
    assert "evaluate" not in ran(repro(project))


def test_the_flow_runs_the_same_graph_and_finds_nothing_to_do(project):
    done = command(project, sys.executable, "-m", "flows.pipeline", PREFECT_HOME=str(project / ".prefect"))
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
        assert f"{stage} | " in done.stdout + done.stderr


def test_a_wrong_setting_stops_before_anything_is_lost(project):
    before = sha256_of(project / "results/metrics.json")
    change(project, "generator.transformer.layers", 3)
    done = command(project, "dvc", "repro")
    assert done.returncode != 0
    assert (
        "generator.transformer has no key 'layers'. Did you mean 'num_layers'?" in done.stdout + done.stderr
    )
    assert sha256_of(project / "results/metrics.json") == before and (project / "models/generator").is_dir()
    shutil.copy(ROOT / "presets" / "smoke.yaml", project / "params.yaml")


def test_a_training_that_was_stopped_resumes_and_ends_as_if_it_was_never_stopped(project, tmp_path):
    """SIGINT in the middle: a checkpoint is saved, the next run resumes from it, and the weights are the same
    bits."""
    expected = sha256_of(project / "models/generator/weights.safetensors")
    arguments = [
        *(sys.executable, "-m", "stages.train_generator", "--tokens", "data/tokens"),
        *("--text-tokenizer", "models/text_tokenizer", "--image-tokenizer", "models/image_tokenizer"),
        *("--out", str(tmp_path / "generator"), "--curves", str(tmp_path / "curves.json")),
        *("--record", str(tmp_path / "record.json")),
    ]
    shutil.rmtree(project / ".ckpt/train_generator")
    running = subprocess.Popen(arguments, cwd=project, env=environment(), stderr=subprocess.PIPE, text=True)
    checkpoints = project / ".ckpt/train_generator"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    output = running.communicate(timeout=120)[1]

    stopped_early = running.returncode == 143 and "the next run resumes from there" in output
    assert stopped_early or running.returncode == 0, output
    done = command(project, *arguments)

    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "generator/weights.safetensors") == expected


def test_a_second_run_of_a_stage_in_the_same_folder_is_rejected(project):
    import fcntl

    with open(project / ".ckpt/locks/check_params", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = command(project, sys.executable, "-m", "stages.check_params", "--out", "data/checked2")
    assert done.returncode == 2 and "another run of this stage" in done.stderr
