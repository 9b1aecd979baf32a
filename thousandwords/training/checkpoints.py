"""Weights on disk: safetensors + JSON + manifest. Durable, verified, the previous one kept, never a pickle.

Two things are written. A *model* (`write_model`, `read_model`) is what a stage leaves behind. A *checkpoint*
(`Checkpoints`) is a moment of a training that can go on as if it had never stopped.
"""
from __future__ import annotations

import itertools
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
from thousandwords.files import (
    DamagedArtefact,
    read_manifest,
    sync_folder,
    telling,
    write_blocks,
    write_json,
    write_manifest,
)

# name in a file of safetensors <- type; files lie in this order, from wide to narrow, so that each tensor is aligned
TYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ORDER = {kind: place for place, kind in enumerate(TYPES)}


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
        """Writes a checkpoint under a temporary name, then renames it, then lets the oldest go.

        Raises DiskFull or CannotWrite; the checkpoints that there were are then as they were.
        """
        target = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{target.name}.tmp"
        with telling(self.folder):
            for stale in self.folder.glob(".step-*.tmp"):  # of a save that was killed
                shutil.rmtree(stale)
            try:
                partial.mkdir(parents=True)
                _write_tensors(partial / "tensors.safetensors", tensors)
                write_json(partial / "state.json", state)
                write_manifest(partial, {"state.json": None, "tensors.safetensors": None}, {"step": step})
            except BaseException:  # what is half-written would keep the room that is lacking
                shutil.rmtree(partial, ignore_errors=True)
                raise
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
    """The file that `safetensors.torch.save` would make, bit for bit, but one tensor after the other.

    That function holds two more copies of all of them; `save_file` holds none, but writes to a file of a name and with rights of
    its own, which a kill leaves behind.
    """
    ordered = sorted(tensors.items(), key=lambda item: (ORDER[item[1].dtype], item[0]))
    header, size = _tensor_header(ordered)
    blocks = itertools.chain([header], (_tensor_bytes(tensor) for _, tensor in ordered))
    write_blocks(path, blocks, len(header) + size)


def _tensor_header(ordered: list[tuple[str, Tensor]]) -> tuple[bytes, int]:
    """(the table of contents, how many bytes follow it): its length in 8 bytes, then JSON, filled up with blanks to whole 8."""
    entries, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _tensor_bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(plain.view(torch.uint8).numpy())


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
