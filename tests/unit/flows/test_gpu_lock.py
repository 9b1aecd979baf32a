"""GPU locks in one process: which GPUs a process sees and holds."""

from __future__ import annotations

import os

import pytest

from flows.workers import gpu_lock
from thousandwords.core.errors import UserError


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THOUSANDWORDS_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(gpu_lock, "installed", lambda: {})


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [("0", ["0"]), ("1, 3", ["1", "3"]), ("", []), ("-1", []), ("GPU-8d2f", ["GPU-8d2f"])],
)
def test_a_process_sees_the_gpus_of_cuda_visible_devices(variable, gpus):
    assert gpu_lock.visible({"CUDA_VISIBLE_DEVICES": variable}) == gpus


def test_without_the_variable_a_process_sees_all_gpus_of_the_driver(monkeypatch):
    monkeypatch.setattr(gpu_lock, "installed", lambda: {"0": "GPU-aa", "1": "GPU-bb"})
    assert gpu_lock.visible({}) == ["0", "1"]


def test_two_runs_get_two_gpus_and_each_sees_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu_lock.hold(1, "first") as first, gpu_lock.hold(1, "second") as second:
        assert first.environment()["CUDA_VISIBLE_DEVICES"] == "0"
        assert second.environment()["CUDA_VISIBLE_DEVICES"] == "1"
        assert gpu_lock.holders(["0"]) == [f"GPU 0: first, process {os.getpid()}, for 0 min"]
    assert gpu_lock.holders(["0", "1"]) == ["GPU 0 is free", "GPU 1 is free"]


def test_an_index_and_a_uuid_of_the_same_gpu_share_a_lock(monkeypatch):
    monkeypatch.setattr(gpu_lock, "installed", lambda: {"0": "GPU-aa"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with gpu_lock.hold(1, "a run"):
        assert gpu_lock._take(["GPU-aa"], 1) == {}


def test_a_stage_that_needs_no_gpu_sees_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with gpu_lock.hold(0, "a stage") as holding:
        assert holding.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_a_machine_without_gpus_runs_the_stage_on_its_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpu_lock.hold(2, "train_generator") as holding:
        assert holding.gpus == ()


def test_more_gpus_than_visible_are_rejected_at_once(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    message = (
        r"^train_generator needs 2 GPUs, but CUDA_VISIBLE_DEVICES has 1 \(5\)\. "
        r"Set fewer in flows/workers/placement\.yaml"
    )
    with pytest.raises(UserError, match=message), gpu_lock.hold(2, "train_generator"):
        pytest.fail("it began")
