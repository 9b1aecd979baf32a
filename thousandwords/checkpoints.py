"""Weights on disk: safetensors + JSON + manifest. Durable, verified, the previous one kept, never a pickle.

Two things are written. A *model* (`write_model`, `read_model`) is what a stage leaves behind. A *checkpoint*
(`Checkpoints`) is a moment of a training that can go on as if it had never stopped.
"""
from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from thousandwords.distributed import alike
from thousandwords.files import DamagedArtefact, read_manifest, sync_folder, write_bytes, write_json, write_manifest


@dataclass(frozen=True)
class SavedModel:
    """What `read_model` found: the header it was written with, its tensors, and the name of those bytes."""

    header: dict
    state: dict[str, Tensor]
    fingerprint: str


def write_model(folder: Path, header: dict, state: dict[str, Tensor]) -> str:
    """Writes config.json, weights.safetensors and manifest.json; returns the fingerprint (the manifest's sha256)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder / "weights.safetensors", state)
    write_json(folder / "config.json", header)
    return write_manifest(folder, {"config.json": None, "weights.safetensors": None}, {})["sha256"]


def read_header(folder: Path, mend: str = "dvc checkout, or dvc repro") -> dict:
    """What the model of `folder` was written with, every byte of the folder checked first; raises DamagedArtefact."""
    read_manifest(folder, mend=mend)
    return json.loads((Path(folder) / "config.json").read_bytes())


def read_model(folder: Path, mend: str = "dvc checkout, or dvc repro") -> SavedModel:
    """The model of `folder`, every byte checked first; raises DamagedArtefact."""
    manifest = read_manifest(folder, mend=mend)
    header = json.loads((Path(folder) / "config.json").read_bytes())
    state = safetensors.torch.load_file(Path(folder) / "weights.safetensors")
    return SavedModel(header, state, manifest["sha256"])


def fill(model: nn.Module, state: dict[str, Tensor], origin: Path) -> None:
    """Loads `state` into `model`; raises DamagedArtefact that names missing, extra and misshapen tensors."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        first = wrong[0]
        raise DamagedArtefact(
            f"{origin} does not fit its own config: {len(wrong)} tensors differ, the first is {first!r}: "
            f"wanted {wanted.get(first)}, found {found.get(first)}. Train that model again"
        )
    model.load_state_dict(state)


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a training: its step, every tensor, and the JSON state beside them."""

    step: int
    tensors: dict[str, Tensor]
    state: dict


class Checkpoints:
    """The checkpoints of one run in one folder: the newest `keep` stay, a damaged one is passed over with a warning."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 2, "one checkpoint is none while the next is being written"
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, tensors: dict[str, Tensor], state: dict) -> None:
        """Writes a checkpoint under a temporary name, then renames it, then lets the oldest go."""
        target = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{target.name}.tmp"
        for stale in self.folder.glob(".step-*.tmp"):  # of a save that was killed
            shutil.rmtree(stale)
        partial.mkdir(parents=True)
        _write_tensors(partial / "tensors.safetensors", tensors)
        write_json(partial / "state.json", state)
        write_manifest(partial, {"state.json": None, "tensors.safetensors": None}, {"step": step})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        sync_folder(self.folder)
        for old in self._folders()[self.keep :]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, or None where there is none at all.

        Raises DamagedArtefact if there are checkpoints but none is good: never a silent fresh start.
        """
        folders = self._folders()
        for folder in folders:
            try:
                return _read_checkpoint(folder)
            except DamagedArtefact as error:
                warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
        if folders:
            raise DamagedArtefact(f"no checkpoint in {self.folder} is whole. To start again, delete that folder")
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _read_checkpoint(folder: Path) -> Checkpoint:
    manifest = read_manifest(folder, mend="nothing: an older checkpoint is used")
    tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
    return Checkpoint(manifest["facts"]["step"], tensors, json.loads((folder / "state.json").read_bytes()))


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors: "3.exp_avg" is the first moment of its fourth parameter."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts `optimizer_tensors` back, each moment in the memory layout of its parameter.

    A file knows no layout, and a fused AdamW reads memory in order: with the moments of a channels-last kernel laid out
    plainly it would update each weight with the moments of another.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, entry = name.split(".", 1)
        parameter = parameters[int(index)]
        is_moment = value.shape == parameter.shape
        state.setdefault(int(index), {})[entry] = alike(value, parameter.detach()) if is_moment else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
