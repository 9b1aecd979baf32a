"""What a version of the registry may hold: the four models as safetensors and JSON, and what MLflow needs to serve them.

Nothing here is run or unpickled: names, a description in YAML, and the headers of tensors are looked at. So a version that
somebody else put together, hashes and all, is refused before anything of it is loaded.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from thousandwords.files import MANIFEST, DamagedArtefact
from thousandwords.gate import PARTS

PACKAGE = "artifacts/package"
SERVED = "_served_model.py"
LOADER = "mlflow.pyfunc.loaders.code_model"
OF_MLFLOW = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
OF_OURS = {SERVED, MANIFEST, "model_card.md", "data_card.md"}
PACKED = re.compile(rf"{PACKAGE}/(({'|'.join(PARTS)})/)?[a-z_]+\.(json|safetensors)")
MOST_HEADER = 2**24  # bytes of a table of contents; a model of a hundred thousand tensors has less
MEND = "Do not use it; register a package of your own"


def check_names(names: Iterable[str], label: str) -> None:
    """Raises DamagedArtefact where a version holds a file that no version of ours has."""
    for name in names:
        if name not in OF_MLFLOW | OF_OURS and not PACKED.fullmatch(name):
            raise DamagedArtefact(f"{label} holds {name!r}, which is no part of a package. {MEND}")


def check_contents(folder: Path, label: str) -> None:
    """Raises DamagedArtefact where MLflow would be told to run something else, or where tensors are no tensors."""
    check_description(folder / "MLmodel", label)
    for path in sorted((folder / PACKAGE).rglob("*.safetensors")):
        check_tensors(path, f"{label}: {path.relative_to(folder)}")


def check_description(path: Path, label: str) -> None:
    """MLmodel may name our own code file, and nothing besides that MLflow would import, run or unpickle."""
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
        (flavour,) = described["flavors"].items()
        name, settings = flavour
        code = Path(settings["model_code_path"]).name
        is_ours = (name, settings["loader_module"], code) == ("python_function", LOADER, SERVED)
        runs_more = bool(settings.get("code") or settings.get("python_model") or settings.get("data"))
        places = {value["path"] for value in settings["artifacts"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise DamagedArtefact(f"{label}: MLmodel is no description of a package ({type(error).__name__}). {MEND}") from error
    if not is_ours or runs_more or places != {PACKAGE}:
        raise DamagedArtefact(f"{label}: MLmodel names other code than {SERVED}, or other files than {PACKAGE}. {MEND}")


def check_tensors(path: Path, label: str) -> None:
    """The table of contents of a safetensors file: of a sane size, and its tensors side by side from first byte to last."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        rest = path.stat().st_size - 8 - length
        if rest < 0 or length > MOST_HEADER:
            raise DamagedArtefact(f"{label} is no safetensors: its header claims {length} bytes. {MEND}")
        text = file.read(length)
    try:
        entries = json.loads(text)
        spans = sorted(tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__")
        ends = [0, *(end for _, end in spans)]
        is_whole = [start for start, _ in spans] == ends[:-1] and all(a <= b for a, b in spans) and ends[-1] == rest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedArtefact(f"{label} is no safetensors: its header cannot be read. {MEND}") from error
    if not is_whole:
        raise DamagedArtefact(f"{label}: its tensors overlap, or leave gaps. {MEND}")
