"""Two processes train as one: the same global batches, the same losses, and exchangeable checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stages.runtime import program
from tests.helpers.distributed_worker import STEPS, train_generator, train_image_tokenizer, train_scorer
from tests.helpers.paths import ROOT
from thousandwords.core.errors import UserError
from thousandwords.training.distributed import SINGLE_PROCESS, World

CODES = {"vocab_size": 100, "first_steps_without_codes": 2, "restart_every": 2, "codebook_decay": 0.5}
ADVERSARY = {"start": 4, "ramp_steps": 2, "adaptive_weight": False, "width": 16, "layers": 1, "norm": "none"}
TOKENIZERS = {
    "ema": {"codebook": "ema"} | CODES,
    "gradient": {"codebook": "gradient"} | CODES,
    # the coarse grid of a batch has 32 tokens: with more codes than that, which ones move hangs on rounding
    "two grids": CODES | {"scales": (2, 4), "vocab_size": 16},
    "adversary": {"adversary": ADVERSARY} | CODES,
}
RECOMPUTED = {"model": {"activation_checkpointing": True}}


def result(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f"{name}.{rank}.json").read_text())


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def run_in_two_processes(folder: Path, *jobs: dict) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.helpers.distributed_worker", str(folder), json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All trainings in a folder: some in this process, the others in two processes of one torchrun."""
    folder = tmp_path_factory.mktemp("runs")
    train_generator("one", folder, SINGLE_PROCESS)
    train_generator("half by one", folder, SINGLE_PROCESS, stop=6)
    train_scorer("scorer", folder, SINGLE_PROCESS)
    for name, model in TOKENIZERS.items():
        train_image_tokenizer(name, folder, SINGLE_PROCESS, **model)
    run_in_two_processes(
        folder,
        {"name": "ddp"},
        {"name": "ddp accumulated", "gradient_accumulation": 2},
        {"name": "fsdp", "strategy": "fsdp"},
        {"name": "fsdp recomputed", "strategy": "fsdp", "gradient_accumulation": 2, **RECOMPUTED},
        {"name": "one, then two", "resume": "half by one"},
        {"name": "half by two", "stop": 6},
        {"name": "half by fsdp", "stop": 6, "strategy": "fsdp"},
        {"name": "compressed", "powersgd_rank": 2},
        {"name": "half compressed", "stop": 6, "powersgd_rank": 2},
        {"name": "compressed, then compressed", "resume": "half compressed", "powersgd_rank": 2},
        {"name": "float16", "precision": "float16"},
        {"name": "scorer in two", "is_scorer": True},
        *({"name": f"{name} in two", "is_tokenizer": True, **model} for name, model in TOKENIZERS.items()),
        {"name": "compressed float16", "precision": "float16", "powersgd_rank": 2},
    )
    train_generator("two, then one", folder, SINGLE_PROCESS, resume="half by two")
    train_generator("fsdp, then one", folder, SINGLE_PROCESS, resume="half by fsdp")
    return folder


def test_two_processes_share_the_batches_of_one_in_the_same_order(runs):
    whole = result(runs, "one")["batches"]
    first, second = (result(runs, "ddp accumulated", rank)["batches"] for rank in (0, 1))

    joined = [[row for part in first[step] + second[step] for row in part] for step in range(STEPS)]

    assert joined == [parts[0] for parts in whole]
    assert [[len(part) for part in parts] for parts in first[:2]] == [[2, 2], [2, 2]]


def losses(folder: Path, name: str) -> torch.Tensor:
    return torch.tensor(result(folder, name)["losses"])


def assert_same_losses(folder: Path, name: str, other: str) -> None:
    expected = losses(folder, other)
    assert len(expected) == STEPS and expected[-1] < expected[0] - 0.1  # it learned
    torch.testing.assert_close(losses(folder, name), expected, atol=1e-3, rtol=0)


def assert_same_training(folder: Path, name: str, other: str) -> None:
    assert_same_losses(folder, name, other)
    actual, expected = weights(folder, name), weights(folder, other)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if value.ndim >= 2:  # the gradient of a key's bias is rounding only, and Adam makes a full step of it
            torch.testing.assert_close(actual[key], value, atol=2e-3, rtol=0)


CHANGED_NUMBER = ["two, then one", "one, then two", "fsdp, then one"]  # of processes, in the middle


@pytest.mark.parametrize("name", ["ddp", "fsdp", *CHANGED_NUMBER])
def test_every_strategy_trains_as_one_process(runs, name):
    assert_same_training(runs, name, "one")


@pytest.mark.parametrize("name", ["ddp accumulated", "fsdp recomputed"])
def test_micro_batches_and_recomputed_activations_change_no_loss(runs, name):
    assert_same_losses(runs, name, "one")


def test_a_loss_over_all_pairs_of_a_batch_compares_those_of_all_processes(runs):
    assert_same_training(runs, "scorer in two", "scorer")


# an adversary is not among them: Adam turns its rounding into whole steps, and the test after this is about it
@pytest.mark.parametrize(
    ("tokenizer", "moved"),
    [
        ("ema", ["codes_restarted"]),
        ("gradient", ["codes_restarted"]),
        ("two grids", ["codes_restarted_scale_2", "codes_restarted_scale_4"]),
    ],
)
def test_the_codes_of_an_image_tokenizer_follow_the_latents_of_all_processes(runs, tokenizer, moved):
    rows, expected = (result(runs, run)["history"] for run in (f"{tokenizer} in two", tokenizer))

    for name in ("loss", *moved):
        values = [torch.tensor([row.get(name, -1.0) for row in run]) for run in (rows, expected)]
        torch.testing.assert_close(*values, atol=1e-3, rtol=0)
    assert all(sum(row.get(name, 0) for row in expected) > 0 for name in moved)
    state, first = weights(runs, f"{tokenizer} in two"), weights(runs, tokenizer)
    names = [name for name in first if "quantizer." in name]
    assert len(names) == 2 * len(moved)
    for name in names:
        torch.testing.assert_close(state[name], first[name], atol=2e-3, rtol=0)


def test_a_discriminator_is_trained_on_the_images_of_all_processes(runs):
    rows, expected = (result(runs, run)["history"] for run in ("adversary in two", "adversary"))

    assert ["discriminator_loss" in row for row in rows] == [step >= 4 for step in range(STEPS)]
    assert expected[-1]["discriminator_loss"] < expected[4]["discriminator_loss"] - 0.05  # it learned
    for mine, one in zip(rows[4:], expected[4:], strict=True):
        assert mine["discriminator_loss"] == pytest.approx(one["discriminator_loss"], abs=1e-4)
        # not each alone: the gradient of the last bias is rounding only, and Adam makes a full step of it
        gap, expected_gap = (row["discriminator_true"] - row["discriminator_decoded"] for row in (mine, one))
        assert gap == pytest.approx(expected_gap, abs=1e-4)
    assert weights(runs, "adversary in two").keys() == weights(runs, "ema").keys()


def test_evaluation_gives_the_same_on_every_process_and_in_a_single_one(runs):
    for name in ("ddp", "fsdp"):
        first, second = (result(runs, name, rank)["history"][-1]["validation/loss"] for rank in (0, 1))
        assert first == second
        assert first == pytest.approx(result(runs, "one")["history"][-1]["validation/loss"], abs=1e-3)


def test_a_batch_that_does_not_divide_evenly_is_rejected():
    assert World(rank=1, size=2).micro_batches(range(8, 16), 2) == [range(12, 14), range(14, 16)]
    message = "batch_size is 9, which 2 processes with 1 micro-batches each cannot share evenly"
    with pytest.raises(UserError, match=message):
        World(rank=1, size=2).micro_batches(range(9))


def params_of(folder: Path, processes: int | str, device: str = "cpu") -> Path:
    params = {"device": device, "scorer": {"training": {"num_processes": processes}}}
    (folder / "params.yaml").write_text(json.dumps(params))
    return folder / "params.yaml"


@pytest.mark.parametrize(
    ("processes", "device", "threads", "expected"),
    [
        ("auto", "cpu", 1, 1),
        ("auto", "cpu", 2, 2),
        ("auto", "cpu", 16, 2),
        (3, "cpu", 1, 3),
        ("auto", "cuda", 1, 8),
    ],
)
def test_auto_is_one_process_per_gpu_or_two_on_a_cpu_with_enough_threads(
    tmp_path, monkeypatch, processes, device, threads, expected
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert program.count_processes(params_of(tmp_path, processes, device), "scorer") == expected


@pytest.mark.parametrize("threads, each", [(16, "8"), (1, "1")])
def test_processes_share_the_threads_of_one(tmp_path, monkeypatch, threads, each):
    started = []
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that monkeypatch restores it
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    start = lambda _, argv: started.append((argv, os.environ["OMP_NUM_THREADS"]))  # noqa: E731
    monkeypatch.setattr(program.os, "execv", start)

    program.launch_processes("train_scorer", params_of(tmp_path, 2), "scorer", ["--pairs", "here"])

    argv, num_threads = started[0]
    assert argv[argv.index("--nproc-per-node") + 1] == "2" and num_threads == each
    assert argv[-3:] == ["stages.train_scorer", "--pairs", "here"]


def test_compressed_gradients_train_differently_and_nearly_as_well(runs):
    compressed, expected = losses(runs, "compressed"), losses(runs, "one")
    assert not compressed.equal(expected) and compressed[-1] < expected[-1] + 0.1


@pytest.mark.paper("generator: gradient compression")
def test_a_compressed_run_resumes_as_if_never_stopped_with_its_error_feedback(runs):
    actual, expected = (weights(runs, name) for name in ("compressed, then compressed", "compressed"))

    assert all(actual[key].equal(expected[key]) for key in expected)
    checkpoint = runs / "checkpoints/half compressed/step-00000006"
    tensors = safetensors.torch.load_file(checkpoint / "tensors.safetensors")
    errors = [value for name, value in tensors.items() if name.endswith(".errors")]
    assert errors and all(len(error) == 2 and error.abs().max() > 0 for error in errors)


@pytest.mark.parametrize("name", ["float16", "compressed float16"])
def test_float16_in_two_processes_starts_at_twice_the_scale_and_learns(runs, name):
    assert losses(runs, name)[-1] < losses(runs, name)[0] - 0.1
