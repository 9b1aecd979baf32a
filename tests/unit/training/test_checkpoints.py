"""Weights and checkpoints are read back unchanged, or rejected as damaged."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.tiny_models import flips
from thousandwords.core.files import DiskFull, write_bytes
from thousandwords.core.manifest import DamagedArtefact
from thousandwords.core.model_files import DTYPE_NAMES, load_state, read_model, write_model
from thousandwords.training.checkpoints import Checkpoint, Checkpoints


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    """A few tensors of different kinds, with values that depend on the step."""
    return {
        "model/weight": torch.arange(6.0).view(2, 3) + step,
        "model/half": torch.tensor([step, 0.1], dtype=torch.bfloat16),
        "model/count": torch.tensor(step),
        "model/mask": torch.tensor([True, False]),
        "model/turned": torch.arange(6.0).view(2, 3).T + step,
    }


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, tensors_of(step), {"history": [{"step": step, "loss": 1 / 3}]})


def assert_is_step(checkpoint: Checkpoint, step: int) -> None:
    """The checkpoint is that of `step`, to the last bit."""
    assert checkpoint.step == step and checkpoint.state == {"history": [{"step": step, "loss": 1 / 3}]}
    assert checkpoint.tensors.keys() == tensors_of(step).keys()
    for name, tensor in tensors_of(step).items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert checkpoint.tensors[name].equal(tensor)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path):
    """A run with checkpoints of steps 10 and 20."""
    run = Checkpoints(tmp_path / "run")
    save(run, 10)
    save(run, 20)
    return run


def test_a_checkpoint_is_read_back_unchanged_and_holds_no_pickle(checkpoints, tmp_path):
    assert_is_step(checkpoints.newest(), 20)
    files = sorted(path.name for path in (checkpoints.folder / "step-00000020").iterdir())
    assert files == ["manifest.json", "state.json", "tensors.safetensors"]
    assert Checkpoints(tmp_path / "a new run").newest() is None


def test_tensors_are_written_as_safetensors_writes_them(tmp_path):
    """Every dtype, in a length that misaligns the next; names that JSON has to escape; no rows, no axes."""
    tensors = {
        f"{name}{index}": (torch.arange(24 * kind.itemsize, dtype=torch.uint8) % 2).view(kind)[:3]
        for index, kind in enumerate(DTYPE_NAMES)
        for name in ("b", 'Straße "\\\n/', "a")
    }
    tensors |= {"no rows": torch.zeros(0, 3), "no axes": torch.tensor(3), "the same": tensors["a0"]}
    tensors |= {"turned": torch.arange(6.0).view(2, 3).T, "part": torch.arange(6.0)[2:4]}
    tensors |= {"parameter": nn.Parameter(torch.ones(2))}

    for state in (tensors, {}):
        write_model(tmp_path, {}, state)
        copies = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
        assert (tmp_path / "weights.safetensors").read_bytes() == safetensors.torch.save(copies)


@pytest.mark.parametrize("passing", range(1, 12))
def test_the_newest_two_are_kept_and_a_full_disk_anywhere_in_a_save_changes_none(
    checkpoints, monkeypatch, passing
):
    monkeypatch.setenv("THOUSANDWORDS_FAILPOINT", f"mid-write:{passing}:ENOSPC")
    monkeypatch.setattr("thousandwords.core.files._passed", Counter())
    if passing <= 10:  # the table of contents and 5 tensors, two halves of the state and of the manifest
        with pytest.raises(DiskFull, match="the disk is full"):
            save(checkpoints, 30)
        assert names(checkpoints) == ["step-00000010", "step-00000020"]
        assert_is_step(checkpoints.newest(), 20)
        monkeypatch.delenv("THOUSANDWORDS_FAILPOINT")
    save(checkpoints, 30)
    assert names(checkpoints) == ["step-00000020", "step-00000030"]
    assert_is_step(checkpoints.newest(), 30)


def test_a_step_can_be_saved_again(checkpoints):
    checkpoints.save(20, {"model/weight": torch.zeros(1)}, {"history": []})
    assert checkpoints.newest().tensors["model/weight"].equal(torch.zeros(1))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_after_damage_to_the_newest_a_warning_names_it_and_the_one_before_is_used(checkpoints, name):
    for _ in flips(checkpoints.folder / "step-00000020" / name, 25):
        with pytest.warns(UserWarning, match=f"skipping a damaged checkpoint: .*step-00000020/{name}"):
            assert_is_step(checkpoints.newest(), 10)
    assert_is_step(checkpoints.newest(), 20)
    path = checkpoints.folder / "step-00000020" / name
    for change in (lambda: path.write_bytes(path.read_bytes()[:20]), path.unlink):  # cut short, missing
        change()
        with pytest.warns(UserWarning, match=name):
            assert_is_step(checkpoints.newest(), 10)


def test_where_none_is_intact_the_run_stops_and_does_not_start_again(checkpoints):
    for step in (10, 20):
        (checkpoints.folder / f"step-000000{step}" / "state.json").write_bytes(b"{}")

    with pytest.warns(UserWarning), pytest.raises(DamagedArtefact) as caught:
        checkpoints.newest()

    assert str(caught.value).endswith(f"{checkpoints.folder} is intact. To start again, delete that folder")


def test_the_new_name_is_on_the_disk_before_the_oldest_checkpoint_goes(checkpoints, monkeypatch):
    events = []
    module = "thousandwords.training.checkpoints"
    monkeypatch.setattr(f"{module}.sync_folder", lambda path: events.append(("sync", path.name)))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: events.append(("remove", path.name)))

    save(checkpoints, 30)

    assert events[-2:] == [("sync", "run"), ("remove", "step-00000010")]


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"weight": (2, 3)}, "'bias': expected (2,), found None"),
        ({"weight": (2, 4), "bias": (2,)}, "'weight': expected (2, 3), found (2, 4)"),
        ({"weight": (2, 3), "bias": (2,), "a": (1,)}, "'a': expected None, found (1,)"),
    ],
)
def test_weights_that_do_not_fit_their_model_are_rejected_by_name_and_shape(state, sentence):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    tensors = {name: torch.zeros(shape) for name, shape in state.items()}

    with pytest.raises(DamagedArtefact) as caught:
        load_state(model, tensors, Path("models/generator"))

    start = "models/generator does not fit its own config: 1 tensors differ, the first is"
    assert str(caught.value) == f"{start} {sentence}. Train that model again"
    assert model.weight.equal(before)


def test_an_overwritten_folder_holds_the_new_model_only(tmp_path):
    write_model(tmp_path, {"kind": "linear"}, tensors_of(1))
    write_bytes(tmp_path / ".weights.safetensors.tmp", b"left by a kill")

    write_model(tmp_path, {"kind": "linear"}, tensors_of(2))

    assert read_model(tmp_path).state["model/count"].item() == 2
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "manifest.json", "weights.safetensors"}
