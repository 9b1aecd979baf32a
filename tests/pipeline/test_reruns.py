"""A finished pipeline, run again: after a changed setting, with a wrong setting, twice at once."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.smoke_project import change, command, new_project, ran, repro
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


def test_a_wrong_setting_stops_before_anything_is_lost(project):
    before = sha256_of(project / "results/metrics.json")
    change(project, "generator.transformer.layers", 3)
    done = command(project, "dvc", "repro")
    assert done.returncode != 0
    sentence = "generator.transformer has no key 'layers'. Did you mean 'num_layers'?"
    assert sentence in done.stdout + done.stderr
    assert sha256_of(project / "results/metrics.json") == before and (project / "models/generator").is_dir()
    shutil.copy(ROOT / "presets" / "smoke.yaml", project / "params.yaml")


def test_a_second_run_of_a_stage_in_the_same_folder_is_rejected(project):
    import fcntl

    with open(project / ".ckpt/locks/check_params", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = command(project, sys.executable, "-m", "stages.check_params", "--out", "data/checked2")
    assert done.returncode == 2 and "another run of this stage" in done.stderr
