"""Weights come back as they were, or not at all; a kill at any moment leaves a checkpoint that can be read."""
from __future__ import annotations

import os
import resource
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.tiny import flips
from thousandwords.checkpoints import (
    TYPES,
    Checkpoints,
    fill,
    optimizer_tensors,
    read_model,
    restore_optimizer,
    write_model,
)
from thousandwords.files import DamagedArtefact, DiskFull, write_bytes


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    """A few tensors of every sort, that tell which step they are of."""
    return {
        "model/weight": torch.arange(6.0).view(2, 3) + step,
        "model/half": torch.tensor([step, 0.1], dtype=torch.bfloat16),
        "model/count": torch.tensor(step),
        "model/mask": torch.tensor([True, False]),
        "model/turned": torch.arange(6.0).view(2, 3).T + step,
    }


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, tensors_of(step), {"history": [{"step": step, "loss": 1 / 3}]})


def assert_is(found: object, step: int) -> None:
    """The checkpoint is that of `step`, to the last bit."""
    assert found.step == step and found.state == {"history": [{"step": step, "loss": 1 / 3}]}
    assert found.tensors.keys() == tensors_of(step).keys()
    for name, tensor in tensors_of(step).items():
        assert found.tensors[name].dtype == tensor.dtype and found.tensors[name].equal(tensor)


@pytest.fixture
def checkpoints(tmp_path):
    """A run with checkpoints of steps 10 and 20."""
    run = Checkpoints(tmp_path / "run")
    save(run, 10)
    save(run, 20)
    return run


# --- saving and finding ----------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was(checkpoints):
    assert_is(checkpoints.newest(), 20)


def test_tensors_are_the_bytes_that_safetensors_makes_of_them(tmp_path):
    """Every type, in a length that leaves the next one badly aligned; names that JSON has to escape; no rows, no axes."""
    tensors = {
        f"{name}{place}": (torch.arange(24 * kind.itemsize, dtype=torch.uint8) % 2).view(kind)[:3]
        for place, kind in enumerate(TYPES)
        for name in ("b", 'Straße "\\\n/', "a")
    }
    tensors |= {"no rows": torch.zeros(0, 3), "no axes": torch.tensor(3), "turned": torch.arange(6.0).view(2, 3).T}
    tensors |= {"part": torch.arange(6.0)[2:4], "the same": tensors["a0"], "learnt": nn.Parameter(torch.ones(2))}

    for found in (tensors, {}):
        write_model(tmp_path, {}, found)
        apart = {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}
        assert (tmp_path / "weights.safetensors").read_bytes() == safetensors.torch.save(apart)


def test_saving_holds_no_second_copy_of_the_tensors(tmp_path):
    before = 64 << 20
    large = {f"{number}": torch.zeros(before // 16) for number in range(4)}  # 64 MB
    child = os.fork()
    if child == 0:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), hard))
        try:
            write_model(tmp_path, {}, large)
        except MemoryError:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(read_model(tmp_path).state[name].equal(tensor) for name, tensor in large.items())


@pytest.mark.parametrize("passing", range(1, 12))
def test_a_disk_that_is_full_anywhere_in_a_save_leaves_the_checkpoints_as_they_were(checkpoints, monkeypatch, passing):
    monkeypatch.setenv("THOUSANDWORDS_FAILPOINT", f"mid-write:{passing}:ENOSPC")
    monkeypatch.setattr("thousandwords.files._passed", Counter())
    if passing <= 10:  # the table of contents and 5 tensors, two halves of the state and of the manifest
        with pytest.raises(DiskFull, match="the disk is full"):
            save(checkpoints, 30)
        assert names(checkpoints) == ["step-00000010", "step-00000020"]
        assert_is(checkpoints.newest(), 20)
        monkeypatch.delenv("THOUSANDWORDS_FAILPOINT")
    save(checkpoints, 30)
    assert_is(checkpoints.newest(), 30)


def test_a_run_that_never_began_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "run").newest() is None


def test_the_newest_two_are_kept(checkpoints):
    save(checkpoints, 30)
    assert names(checkpoints) == ["step-00000020", "step-00000030"]


def test_a_run_that_keeps_fewer_than_two_is_not_possible(tmp_path):
    with pytest.raises(AssertionError, match="one checkpoint is none while the next is being written"):
        Checkpoints(tmp_path, keep=1)


def test_a_step_may_be_saved_again(checkpoints):
    checkpoints.save(20, {"model/weight": torch.zeros(1)}, {"history": []})
    assert checkpoints.newest().tensors["model/weight"].equal(torch.zeros(1))


def test_a_checkpoint_holds_no_pickle(checkpoints):
    files = sorted(path.name for path in (checkpoints.folder / "step-00000020").iterdir())
    assert files == ["manifest.json", "state.json", "tensors.safetensors"]


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_in_the_newest_is_told_and_the_one_before_is_used(checkpoints, name):
    for _ in flips(checkpoints.folder / "step-00000020" / name, 25):
        with pytest.warns(UserWarning, match=f"passing over a damaged checkpoint: .*step-00000020/{name}"):
            assert_is(checkpoints.newest(), 10)
    assert_is(checkpoints.newest(), 20)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_newest_with_a_file_cut_short_or_missing_is_passed_over(checkpoints, name):
    path = checkpoints.folder / "step-00000020" / name
    for size in (0, 1, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.warns(UserWarning, match=name):
            assert_is(checkpoints.newest(), 10)
    path.unlink()
    with pytest.warns(UserWarning, match=name):
        assert_is(checkpoints.newest(), 10)


def test_where_none_is_whole_the_run_stops_and_does_not_start_again(checkpoints):
    for step in (10, 20):
        (checkpoints.folder / f"step-000000{step}" / "state.json").write_bytes(b"{}")

    with pytest.warns(UserWarning), pytest.raises(DamagedArtefact) as caught:
        checkpoints.newest()

    assert str(caught.value) == f"no checkpoint in {checkpoints.folder} is whole. To start again, delete that folder"


# --- kills -----------------------------------------------------------------------------------------------------------

CALLS = [(os, "fsync"), (os, "replace"), (shutil, "rmtree")]  # between any two of them the process may die


def die_before(number: int, run: Checkpoints) -> bool:
    """Saves step 30 in another process that is killed before its call `number`; tells whether it lived that long."""
    child = os.fork()
    if child == 0:
        countdown = iter(range(number + 1))
        for module, name in CALLS:
            setattr(module, name, _mortal(getattr(module, name), countdown))
        save(run, 30)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _mortal(call, countdown):
    def counted(*arguments, **settings):
        if next(countdown, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **settings)

    return counted


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint_whole(tmp_path):
    found = []
    for number in range(100):
        run = Checkpoints(tmp_path / str(number))
        save(run, 10)
        save(run, 20)
        was_killed = die_before(number, run)
        found.append(run.newest().step)
        assert_is(run.newest(), found[-1])
        save(run, 40)  # and the next save clears what the dead one left
        assert names(run)[-1] == "step-00000040" and len(names(run)) == 2
        if not was_killed:
            break
    assert found == [20] * found.count(20) + [30] * found.count(30)
    assert found.count(20) >= 8 and found.count(30) >= 3


def test_the_new_name_is_on_the_disk_before_the_oldest_checkpoint_goes(checkpoints, monkeypatch):
    events = []
    monkeypatch.setattr("thousandwords.checkpoints.sync_folder", lambda path: events.append(("sync", path.name)))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: events.append(("remove", path.name)))

    save(checkpoints, 30)

    assert events[-2:] == [("sync", "run"), ("remove", "step-00000010")]


# --- optimizers ------------------------------------------------------------------------------------------------------


def trained(steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()


def test_an_optimizer_that_was_saved_and_put_back_goes_on_as_if_never_stopped(tmp_path):
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, restored = (torch.optim.AdamW(one.parameters(), lr=0.1) for one in (model, twin))
    trained(3, model, optimizer)

    twin.load_state_dict(model.state_dict())
    Checkpoints(tmp_path).save(3, optimizer_tensors(optimizer), {})
    restore_optimizer(restored, Checkpoints(tmp_path).newest().tensors)

    trained(3, model, optimizer)
    trained(3, twin, restored)
    assert twin.weight.equal(model.weight) and twin.bias.equal(model.bias)


def test_the_state_of_an_optimizer_has_flat_names():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    trained(1, model, optimizer)

    assert sorted(optimizer_tensors(optimizer)) == [
        "0.exp_avg", "0.exp_avg_sq", "0.step", "1.exp_avg", "1.exp_avg_sq", "1.step",
    ]  # fmt: skip


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_with_its_header_and_the_same_bytes_have_the_same_fingerprint(tmp_path):
    header = {"kind": "linear", "config": {"width": 3}}

    first = write_model(tmp_path / "first", header, tensors_of(1))
    again = write_model(tmp_path / "again", header, dict(reversed(tensors_of(1).items())))
    other = write_model(tmp_path / "other", header, tensors_of(2))

    saved = read_model(tmp_path / "first")
    assert saved.header == header and saved.fingerprint == first == again != other
    assert all(saved.state[name].equal(tensor) for name, tensor in tensors_of(1).items())


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "manifest.json"])
def test_a_model_with_one_flipped_bit_is_refused(tmp_path, name):
    write_model(tmp_path, {"kind": "linear"}, tensors_of(1))
    for _ in flips(tmp_path / name, 25):
        with pytest.raises(DamagedArtefact, match=f"{name}.* Run: dvc repro train_generator"):
            read_model(tmp_path, mend="dvc repro train_generator")


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"weight": (2, 3)}, "1 tensors differ, the first is 'bias': wanted (2,), found None"),
        ({"weight": (2, 4), "bias": (2,)}, "1 tensors differ, the first is 'weight': wanted (2, 3), found (2, 4)"),
        ({"weight": (2, 3), "bias": (2,), "a": (1,)}, "1 tensors differ, the first is 'a': wanted None, found (1,)"),
    ],
)
def test_weights_that_do_not_fit_their_model_are_refused_by_name_and_shape(state, sentence):
    model = nn.Linear(3, 2)
    before = model.weight.clone()

    with pytest.raises(DamagedArtefact) as caught:
        fill(model, {name: torch.zeros(shape) for name, shape in state.items()}, Path("models/generator"))

    assert str(caught.value) == f"models/generator does not fit its own config: {sentence}. Train that model again"
    assert model.weight.equal(before)


def test_a_folder_that_is_written_over_is_that_of_the_new_model(tmp_path):
    write_model(tmp_path, {"kind": "linear"}, tensors_of(1))
    write_bytes(tmp_path / ".weights.safetensors.tmp", b"left by a kill")

    write_model(tmp_path, {"kind": "linear"}, tensors_of(2))

    assert read_model(tmp_path).state["model/count"].item() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "manifest.json", "weights.safetensors"]
