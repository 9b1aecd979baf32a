"""Two processes are one: the same global batches in the same order, the same losses, and a checkpoint for any number."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stages import _launch
from tests.distributed_worker import STEPS, compare, work
from thousandwords.distributed import ALONE, World
from thousandwords.errors import UserError

ROOT = Path(__file__).parent.parent


def result(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f"{name}.{rank}.json").read_text())


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def copied(folder: Path, run: str, name: str) -> str:
    """The checkpoints of a run under another name, so that one run can be gone on with several times."""
    shutil.copytree(folder / "checkpoints" / run, folder / "checkpoints" / name)
    return name


def in_two_processes(folder: Path, *jobs: dict) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.distributed_worker", str(folder), json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All trainings in a folder: some in this process, the others in two that torchrun starts, which takes its time."""
    folder = tmp_path_factory.mktemp("runs")
    work("one", folder, ALONE)
    work("accumulated", folder, ALONE, accumulation=4)
    work("recomputed", folder, ALONE, model={"recompute": True})
    work("half by one", folder, ALONE, stop=10)
    compare("scorer", folder, ALONE)
    in_two_processes(
        folder,
        {"name": "ddp"},
        {"name": "ddp accumulated", "accumulation": 2},
        {"name": "fsdp", "parallel": "fsdp"},
        {"name": "fsdp recomputed", "parallel": "fsdp", "accumulation": 2, "model": {"recompute": True}},
        {"name": "one, then two", "resume": "half by one"},
        {"name": "half by two", "stop": 10},
        {"name": "half by fsdp", "stop": 10, "parallel": "fsdp"},
        {"name": "compressed", "powersgd_rank": 2},
        {"name": "half compressed", "stop": 10, "powersgd_rank": 2},
        {"name": "compressed, then compressed", "resume": "half compressed", "powersgd_rank": 2},
        {"name": "half compressed again", "stop": 10, "powersgd_rank": 2},
        {"name": "float16", "precision": "float16"},
        {"name": "scorer in two", "is_scorer": True},
        {"name": "compressed float16", "precision": "float16", "powersgd_rank": 2},
    )
    work("two, then one", folder, ALONE, resume="half by two")
    work("fsdp, then one", folder, ALONE, resume="half by fsdp")
    return folder


# --- the same training -----------------------------------------------------------------------------------------------


def test_two_processes_share_the_very_batches_of_one_in_the_same_order(runs):
    whole = result(runs, "one")["seen"]
    first, second = (result(runs, "ddp accumulated", rank)["seen"] for rank in (0, 1))

    joined = [[row for part in first[step] + second[step] for row in part] for step in range(STEPS)]

    assert joined == [parts[0] for parts in whole]
    assert [[len(part) for part in parts] for parts in first[:2]] == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    "name",
    ["accumulated", "recomputed", "ddp", "ddp accumulated", "fsdp", "fsdp recomputed", "one, then two", "two, then one",
     "fsdp, then one"],
)  # fmt: skip
def test_however_a_training_is_dealt_out_its_losses_are_those_of_one_process(runs, name):
    losses, wanted = (torch.tensor(result(runs, one)["losses"]) for one in (name, "one"))

    assert len(losses) == STEPS
    assert wanted[-1] < wanted[0] - 0.1  # something was learnt
    torch.testing.assert_close(losses, wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "two, then one", "one, then two", "fsdp, then one"])
def test_the_kept_weights_are_whole_and_those_of_one_process(runs, name):
    found, wanted = weights(runs, name), weights(runs, "one")

    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}
    for key, value in wanted.items():
        if value.ndim >= 2:  # a key's bias has no gradient but rounding, of which Adam makes a whole step
            torch.testing.assert_close(found[key], value, atol=2e-3, rtol=0)


def test_a_loss_that_compares_a_whole_batch_compares_it_over_all_processes(runs):
    losses, wanted = (torch.tensor(result(runs, one)["losses"]) for one in ("scorer in two", "scorer"))
    found, kept = weights(runs, "scorer in two"), weights(runs, "scorer")

    assert wanted[-1] < wanted[0] - 0.1
    torch.testing.assert_close(losses, wanted, atol=1e-3, rtol=0)
    for key, value in kept.items():
        if value.ndim >= 2:
            torch.testing.assert_close(found[key], value, atol=2e-3, rtol=0)


def test_evaluation_gives_the_same_on_every_process_and_as_alone(runs):
    for name in ("ddp", "fsdp"):
        first, second = (result(runs, name, rank)["history"][-1]["validation/loss"] for rank in (0, 1))
        assert first == second
        assert first == pytest.approx(result(runs, "one")["history"][-1]["validation/loss"], abs=1e-3)


def test_a_share_of_the_rows_that_comes_out_uneven_is_refused():
    assert World(rank=1, size=2).shares(range(8, 16), 2) == [range(12, 14), range(14, 16)]
    with pytest.raises(UserError, match="batch_size is 9, which 2 processes with 1 micro-batches each cannot share evenly"):
        World(rank=1, size=2).shares(range(9))


# --- how many ---------------------------------------------------------------------------------------------------------


def params_of(folder: Path, processes: int | str, device: str = "cpu") -> Path:
    (folder / "params.yaml").write_text(json.dumps({"device": device, "scorer": {"training": {"processes": processes}}}))
    return folder / "params.yaml"


@pytest.mark.parametrize("threads, wanted", [(1, 1), (2, 2), (16, 2)])
def test_auto_is_two_processes_on_a_cpu_that_has_threads_for_them(tmp_path, monkeypatch, threads, wanted):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert _launch.count_processes(params_of(tmp_path, "auto"), "scorer") == wanted
    assert _launch.count_processes(params_of(tmp_path, 3), "scorer") == 3


@pytest.mark.parametrize("gpus", [1, 8])
def test_auto_is_a_process_for_each_gpu_where_gpus_compute(tmp_path, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert _launch.count_processes(params_of(tmp_path, "auto", "cuda"), "scorer") == gpus


@pytest.mark.parametrize("threads, each", [(16, "8"), (1, "1")])
def test_processes_share_the_threads_that_one_would_have(tmp_path, monkeypatch, threads, each):
    started = []
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that whatever it was comes back
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(_launch.os, "execv", lambda program, words: started.append((words, os.environ["OMP_NUM_THREADS"])))

    _launch.launch_processes("train_scorer", params_of(tmp_path, 2), "scorer", ["--pairs", "here"])

    words, found = started[0]
    assert words[words.index("--nproc-per-node") + 1] == "2" and words[-3:] == ["stages.train_scorer", "--pairs", "here"]
    assert found == each


# --- compressed gradients --------------------------------------------------------------------------------------------


def test_compressed_gradients_train_nearly_as_well_and_not_alike(runs):
    losses, wanted = (torch.tensor(result(runs, one)["losses"]) for one in ("compressed", "one"))

    assert not losses.equal(wanted)
    assert losses[-1] < wanted[-1] + 0.1


def test_a_compressed_run_that_stopped_goes_on_as_if_it_had_not_with_its_error_feedback(runs):
    found, wanted = (weights(runs, name) for name in ("compressed, then compressed", "compressed"))

    assert all(found[key].equal(wanted[key]) for key in wanted)
    kept = safetensors.torch.load_file(runs / "checkpoints/half compressed again/step-00000010/tensors.safetensors")
    errors = [value for name, value in kept.items() if name.endswith(".errors")]
    assert errors and all(len(error) == 2 for error in errors) and all(error.abs().max() > 0 for error in errors)


# --- float16 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "compressed float16"])
def test_float16_in_two_processes_starts_at_twice_the_scale_and_learns(runs, name):
    losses = result(runs, name)["losses"]
    assert losses[-1] < losses[0] - 0.1
