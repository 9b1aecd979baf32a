"""What the studio reads of a run in its folder."""

import json
import os

import pytest

from studio.data.training import image_file, training_status

PROGRESS = {"stage": "train_generator", "step": 20, "steps": 50, "seconds_left": 3, "is_finished": False}


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "results/training/train_generator"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps(PROGRESS | {"updated": 1.0}))
    (folder / "curves.jsonl").write_text(
        '{"step": 10, "loss": 2.5}\n{"step": 20, "loss": NaN}\n{"step": 30, "lo'
    )
    (folder / "step-000010.png").write_bytes(b"png")
    (tmp_path / ".ckpt/locks").mkdir(parents=True)
    return tmp_path


def test_a_training_is_running_while_the_process_of_its_lock_lives(project):
    (project / ".ckpt/locks/train_generator").write_text(json.dumps({"pid": os.getpid()}))
    status = training_status(project)
    (training,) = status["trainings"]
    assert status["running"] == ["train_generator"]
    assert (training["state"], training["step"], training["steps"]) == ("running", 20, 50)
    assert training["curves"] == {"loss": [(10, 2.5), (20, None)]}
    assert training["images"][0]["url"].startswith("/api/training/train_generator/10.png?")


def test_a_training_that_was_killed_is_stopped(project):
    (project / ".ckpt/locks/train_generator").write_text(json.dumps({"pid": 2**30}))
    assert training_status(project)["trainings"][0]["state"] == "stopped"


@pytest.mark.parametrize("damage", ["[]", "null", '{"step": 1, "loss": "x"}', '{"st', "\0"])
def test_damaged_files_of_a_training_do_not_close_the_view(project, damage):
    folder = project / "results/training/train_generator"
    (project / ".ckpt/locks/train_generator").write_text('{"pid": null}')
    (folder / "curves.jsonl").write_text(damage + "\n")
    assert training_status(project)["trainings"][0]["state"] == "stopped"
    (folder / "progress.json").write_text(damage)
    assert training_status(project) == {"running": [], "trainings": []}


@pytest.mark.parametrize("stage", ["../..", "train_generator/..", "."])
def test_an_image_outside_the_trainings_has_no_file(project, stage):
    assert not image_file(project, stage, 10).is_file()
    assert image_file(project, "train_generator", 10).is_file()
