"""A model in a folder: config.json, weights.safetensors and a manifest."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from thousandwords.core.files import write_blocks, write_json
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest

# dtype -> name in safetensors. Tensors are stored in this order, from wide to narrow, so that each is aligned
DTYPE_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

DTYPE_ORDER = {dtype: rank for rank, dtype in enumerate(DTYPE_NAMES)}


@dataclass(frozen=True)
class SavedModel:
    """A model read from disk: its header, its tensors, and the fingerprint of its bytes."""

    header: dict
    state: dict[str, Tensor]
    fingerprint: str


def write_model(folder: Path, header: dict, state: dict[str, Tensor]) -> str:
    """Write config.json, weights.safetensors and manifest.json; return the manifest's sha256."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "weights.safetensors", state)
    write_json(folder / "config.json", header)
    return write_manifest(folder, {"config.json": None, "weights.safetensors": None}, {})["sha256"]


def read_header(folder: Path, fix: str = "dvc checkout, or dvc repro") -> dict:
    """The header of the model in `folder`, after checking every file; raises DamagedArtefact."""
    manifest = read_manifest(folder, fix=fix)
    header = (
        json.loads((Path(folder) / "config.json").read_bytes()) if "config.json" in manifest["files"] else {}
    )
    if "family" not in header:
        raise DamagedArtefact(f"{folder} holds no image tokenizer, decoder, generator or scorer. Run: {fix}")
    return header


def read_model(folder: Path, fix: str = "dvc checkout, or dvc repro") -> SavedModel:
    """The model in `folder`, after checking every byte; raises DamagedArtefact."""
    manifest = read_manifest(folder, fix=fix)
    header = json.loads((Path(folder) / "config.json").read_bytes())
    state = safetensors.torch.load_file(Path(folder) / "weights.safetensors")
    return SavedModel(header, state, manifest["sha256"])


def load_state(model: nn.Module, state: dict[str, Tensor], origin: Path) -> None:
    """Load `state` into `model`; DamagedArtefact if a tensor is missing, unexpected or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != shapes:
        wrong = sorted(
            name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)
        )
        first = wrong[0]
        raise DamagedArtefact(
            f"{origin} does not fit its own config: {len(wrong)} tensors differ, the first is {first!r}: "
            f"expected {expected.get(first)}, found {shapes.get(first)}. Train that model again"
        )
    model.load_state_dict(state)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the same file as `safetensors.torch.save`, bit for bit, one tensor after the other.

    That function holds two more copies of all tensors. `save_file` holds none, but writes to a temporary file
    with its own name and permissions, which remains after a kill.
    """
    ordered = sorted(tensors.items(), key=lambda item: (DTYPE_ORDER[item[1].dtype], item[0]))
    header, size = _tensor_header(ordered)
    blocks = itertools.chain([header], (_tensor_bytes(tensor) for _, tensor in ordered))
    write_blocks(path, blocks, len(header) + size)


def _tensor_header(ordered: list[tuple[str, Tensor]]) -> tuple[bytes, int]:
    """(header, bytes after it). Header: its length in 8 bytes, then JSON, padded to a multiple of 8."""
    entries, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _tensor_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
