"""Payloads of a malicious version: each would create the marker file if it were ever unpickled, imported or
run."""

import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

WEIGHTS = "artifacts/package/generator/weights.safetensors"


class Called:
    """Unpickled, it calls `function` with `arguments`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


class Stateful:
    """Unpickled, its __setstate__ creates the file that its state names."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        Path(path).touch()


class CreatesFileInNew:
    """Unpickled by NEWOBJ, its __new__ creates the file `path`; it is made by `object.__new__`."""

    path: str

    def __new__(cls, path: str):
        Path(path).touch()
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple:
        return (self.path,)


def touching(marker: Path) -> Called:
    return Called(os.system, f"touch {marker}")


def with_new(marker: Path) -> CreatesFileInNew:
    value = object.__new__(CreatesFileInNew)
    value.path = str(marker)
    return value


def saved_by_torch(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def legacy_tar(marker: Path) -> bytes:
    """The container that torch wrote before 0.1.10: a tar with a pickle in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            data = pickle.dumps(touching(marker))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


PICKLES = {
    "pickle of os.system": lambda marker: pickle.dumps(touching(marker)),
    "pickle of eval": lambda marker: pickle.dumps(Called(eval, f"open({str(marker)!r}, 'w').close()")),
    "pickle with __setstate__": lambda marker: pickle.dumps(Stateful(str(marker))),
    "pickle with NEWOBJ": lambda marker: pickle.dumps(with_new(marker), protocol=2),
    "torch bytes in torch bytes": lambda marker: saved_by_torch(
        {"weights": saved_by_torch(touching(marker))}
    ),
    "legacy tar": legacy_tar,
}


def safetensors(header: dict, size: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def overlapping(_: Path) -> bytes:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    return safetensors({"a": entry, "b": {**entry, "data_offsets": [8, 24]}}, 24)


def with_huge_header(folder: Path, _: Path) -> None:
    """A header of 20 MB, most of it a hole in the file."""
    with open(folder / WEIGHTS, "wb") as file:
        file.write(struct.pack("<Q", 20_000_000))
        file.truncate(8 + 20_000_000)


def replacing(make: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        (folder / WEIGHTS).write_bytes(make(marker))

    return change


def with_loader_module(folder: Path, marker: Path) -> None:
    """MLmodel names a loader module in code/."""
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code/evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    flavor = {"loader_module": "evil", "code": "code"}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))


def with_pickle_module_info(folder: Path, marker: Path) -> None:
    """The file in which MLflow's torch flavor looks up the module that unpickles its data."""
    (folder / "data").mkdir()
    (folder / "data/pickle_module_info.txt").write_text("evil")
    (folder / "data/model.pth").write_bytes(saved_by_torch(touching(marker)))


def with_link(folder: Path, _: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/etc/passwd")


def with_traversal(folder: Path, _: Path) -> None:
    """A manifest that names a file outside of the version."""
    outside = folder.parent / "outside.json"
    outside.write_text("{}")


HOSTILE = {
    **{name: replacing(make) for name, make in PICKLES.items()},
    "loader_module and code": with_loader_module,
    "pickle_module_info.txt": with_pickle_module_info,
    "link out of the version": with_link,
    "name out of the version": with_traversal,
    "overlapping tensors": replacing(overlapping),
    "huge header": with_huge_header,
}
