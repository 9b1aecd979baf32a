"""What a version may hold: four models as safetensors and JSON, and the files that MLflow needs.

Only names, the YAML description and the headers of tensors are read; nothing is run or unpickled. So a forged
version, even one with valid hashes, is rejected before anything of it is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from thousandwords.core.manifest import MANIFEST, DamagedArtefact
from thousandwords.evaluation.gate import PARTS

PACKAGE = "artifacts/package"
SERVED = "_served_model.py"  # flows/registry/served_model.py, under the name that it has in versions
LOADER = "mlflow.pyfunc.loaders.code_model"
MLFLOW_FILES = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
PROJECT_FILES = {SERVED, MANIFEST, "model_card.md", "data_card.md"}
PACKAGE_FILE = re.compile(rf"{PACKAGE}/(({'|'.join(PARTS)})/)?[a-z_]+\.(json|safetensors)")
MAX_HEADER_BYTES = 2**24  # a model of a hundred thousand tensors has less
FIX = "Do not use it; register a package of your own"


def check_names(names: Iterable[str], label: str) -> None:
    """Raises DamagedArtefact if a version holds a file that this project never writes."""
    for name in names:
        if name not in MLFLOW_FILES | PROJECT_FILES and not PACKAGE_FILE.fullmatch(name):
            raise DamagedArtefact(f"{label} holds {name!r}, which is no part of a package. {FIX}")


def check_contents(folder: Path, label: str) -> None:
    """Raises DamagedArtefact if MLflow would run other code, or if a safetensors file is invalid."""
    check_mlmodel(folder / "MLmodel", label)
    for path in sorted((folder / PACKAGE).rglob("*.safetensors")):
        check_tensors(path, f"{label}: {path.relative_to(folder)}")


def check_mlmodel(path: Path, label: str) -> None:
    """MLmodel may name this project's code file and nothing else that MLflow would import or unpickle."""
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
        (flavor,) = description["flavors"].items()
        name, settings = flavor
        code = Path(settings["model_code_path"]).name
        is_own_code = (name, settings["loader_module"], code) == ("python_function", LOADER, SERVED)
        runs_more = bool(settings.get("code") or settings.get("python_model") or settings.get("data"))
        paths = {value["path"] for value in settings["artifacts"].values()}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        raise DamagedArtefact(
            f"{label}: MLmodel does not describe a package ({type(error).__name__}). {FIX}"
        ) from error
    if not is_own_code or runs_more or paths != {PACKAGE}:
        raise DamagedArtefact(
            f"{label}: MLmodel names other code than {SERVED}, or other files than {PACKAGE}. {FIX}"
        )


def check_tensors(path: Path, label: str) -> None:
    """Check the header of a safetensors file: its size, and that the tensors are contiguous and complete."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        num_data_bytes = path.stat().st_size - 8 - length
        if num_data_bytes < 0 or length > MAX_HEADER_BYTES:
            raise DamagedArtefact(
                f"{label} is not a safetensors file: its header claims {length} bytes. {FIX}"
            )
        text = file.read(length)
    try:
        entries = json.loads(text)
        spans = sorted(
            tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__"
        )
        ends = [0, *(end for _, end in spans)]
        is_contiguous = (
            [start for start, _ in spans] == ends[:-1]
            and all(start <= end for start, end in spans)
            and ends[-1] == num_data_bytes
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedArtefact(
            f"{label} is not a safetensors file: its header cannot be read. {FIX}"
        ) from error
    if not is_contiguous:
        raise DamagedArtefact(f"{label}: its tensors overlap, or leave gaps. {FIX}")
