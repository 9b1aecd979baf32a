"""GPU locks in one process: which GPUs a process sees and holds."""

import os

import pytest

from flows.workers import gpu_lock
from thousandwords.core.errors import UserError


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THOUSANDWORDS_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(gpu_lock, "installed", lambda: {"0": "GPU-aa", "1": "GPU-bb"})


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [(None, ["0", "1"]), ("0", ["0"]), ("1, 3", ["1", "3"]), ("", []), ("-1", []), ("GPU-aa", ["GPU-aa"])],
)
def test_a_process_sees_the_gpus_of_cuda_visible_devices_or_all_of_the_driver(variable, gpus):
    assert gpu_lock.visible({"CUDA_VISIBLE_DEVICES": variable} if variable is not None else {}) == gpus


def test_runs_get_gpus_of_their_own_under_whatever_name_and_one_that_needs_none_sees_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,0,1")
    with gpu_lock.hold(1, "first") as first, gpu_lock.hold(1, "second") as second:
        assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("GPU-aa", "1")
        assert gpu_lock.holders(["0"]) == [f"GPU 0: first, process {os.getpid()}, for 0 min"]
        with gpu_lock.hold(0, "third") as third:
            assert third["CUDA_VISIBLE_DEVICES"] == ""
    assert gpu_lock.holders(["0", "1"]) == ["GPU 0 is free", "GPU 1 is free"]


def test_more_gpus_than_visible_are_rejected_at_once_and_a_machine_without_gpus_uses_its_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    message = (
        r"^train_generator needs 2 GPUs, but CUDA_VISIBLE_DEVICES has 1 \(5\)\. "
        r"Set fewer in flows/workers/placement\.yaml"
    )
    with pytest.raises(UserError, match=message), gpu_lock.hold(2, "train_generator"):
        pytest.fail("it began")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpu_lock.hold(2, "train_generator") as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
