"""Checkpoints: the state of a training on disk, from which it resumes as if it had never stopped.

Each is a folder with safetensors, JSON and a manifest: durable, verified, never a pickle.
"""

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from thousandwords.core.files import sync_folder, translate_write_errors, write_json
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.core.model_files import write_tensors
from thousandwords.training.distributed import copy_like

KEEP = 2  # with only one, a crash during the next save could leave no checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training: its step, all tensors, and the rest as JSON."""

    step: int
    tensors: dict[str, Tensor]
    state: dict


class Checkpoints:
    """The newest checkpoints of a run in one folder; damaged ones are skipped with a warning."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict) -> None:
        """Write a checkpoint, rename it, delete the oldest. Raises DiskFull or CannotWrite, nothing changed."""
        target = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{target.name}.tmp"
        with translate_write_errors(self.folder):
            for stale in self.folder.glob(".step-*.tmp"):  # left by a killed save
                shutil.rmtree(stale)
            try:
                partial.mkdir(parents=True)
                write_tensors(partial / "tensors.safetensors", tensors)
                write_json(partial / "state.json", state)
                write_manifest(partial, {"state.json": None, "tensors.safetensors": None}, {"step": step})
            except BaseException:  # a partial save would fill the disk further
                shutil.rmtree(partial, ignore_errors=True)
                raise
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            sync_folder(self.folder)
            for old in self._folders()[KEEP:]:
                shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, None if there is none at all, DamagedArtefact if none is intact."""
        folders = self._folders()
        for folder in folders:
            try:
                return _read_checkpoint(folder)
            except DamagedArtefact as error:
                warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
        if folders:
            raise DamagedArtefact(
                f"no checkpoint in {self.folder} is intact. To start again, delete that folder"
            )
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _read_checkpoint(folder: Path) -> Checkpoint:
    manifest = read_manifest(folder, fix="nothing: an older checkpoint is used")
    tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
    return Checkpoint(manifest["facts"]["step"], tensors, json.loads((folder / "state.json").read_bytes()))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors: "3.exp_avg" is the first moment of its fourth parameter."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore `optimizer_tensors`, each moment in the memory layout of its parameter.

    A fused AdamW reads memory in order: it would update channels-last weights with the moments of others.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, entry = name.split(".", 1)
        parameter = parameters[int(index)]
        is_moment = value.shape == parameter.shape
        state.setdefault(int(index), {})[entry] = copy_like(value, parameter.detach()) if is_moment else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
