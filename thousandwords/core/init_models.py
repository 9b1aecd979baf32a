"""`<section>.init`: the model that a stage starts from, or copies: a model folder, a package, or models:/name@alias.

The library knows no registry: the stage check_params fetches a registered package, verified, and records in
data/init/<section>.json where it lies. DVC depends on that file, so another model there runs the stage again.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from thousandwords.core.config import ConfigError
from thousandwords.core.files import sha256_of, write_json
from thousandwords.core.manifest import read_manifest

SECTIONS = ("text_tokenizer", "image_tokenizer", "decoder", "generator", "scorer")
RECORDS = Path("data/init")
REGISTERED = re.compile(r"models:/thousandwords[@/]([\w.-]+)")


@dataclass(frozen=True)
class ModelConfig:
    """The section `scorer` of params.yaml beside the model and its training."""

    init: str | None = None  # a model to go on from: a folder or models:/thousandwords@alias


def registered_version(block: object, name: str) -> str | None:
    """The alias or number of a registered package: "models:/thousandwords@champion" -> "champion"; else None."""
    init = block.get("init") if isinstance(block, dict) else None
    if not (isinstance(init, str) and init.startswith("models:")):
        return None
    match = REGISTERED.fullmatch(init)
    if not match:
        raise ConfigError(
            f"params.yaml: {name}.init is {init!r}; a registered package is models:/thousandwords@champion (or "
            "another alias), or models:/thousandwords/3 (its number)"
        )
    return match[1]


def init_folder(block: dict, name: str) -> Path | None:
    """The folder of the model that the section `name` starts from, or None: first weights.

    Raises ConfigError if `init` names none, or one that this pipeline writes anew.
    """
    init = block.get("init")
    if init is None:
        return None
    if not (isinstance(init, str) and init):
        raise ConfigError(
            f"params.yaml: {name}.init should be a folder, or null to train one here; found {init!r}"
        )
    if registered_version(block, name):
        return _fetched_folder(init, name)
    folder = Path(init)
    if not folder.exists():
        raise ConfigError(
            f"params.yaml: {name}.init is {init}, but there is no such folder. Run: {fix_of(name, folder)}"
        )
    model = part_of(folder, name)
    if (found := kind_of(model)) not in (name, "a damaged model"):
        raise ConfigError(
            f"params.yaml: {name}.init is {init}, which holds {found or 'no model of this project'}. Name the folder of "
            f"a trained {name}, or a package that has one"
        )
    _check_not_written_here(model, name, f"params.yaml: {name}.init is {init}")
    return model


def _check_not_written_here(model: Path, name: str, setting: str) -> None:
    written = [Path("models", name), Path("models/package", name)]
    if model.resolve() in [path.resolve() for path in written]:
        key = setting.removeprefix("params.yaml: ").partition(" is ")[0]
        raise ConfigError(
            f"{setting}, which this pipeline writes anew. Copy it first: "
            f"cp -r models/package models/start; then set {key}: models/start"
        )


def perceptual_folder(network: str, name: str) -> Path | None:
    """The folder of the scorer that `<name>.perceptual.network` names, or None where it names a file.

    Raises ConfigError if it names neither, or the scorer that this pipeline writes.
    """
    path, setting = Path(network), f"params.yaml: {name}.perceptual.network is {network}"
    if not path.is_dir():
        return None
    folder = part_of(path, "scorer")
    if kind_of(folder) != "scorer":
        raise ConfigError(
            f"{setting}, which holds no scorer. Name the folder of a trained scorer, or a package"
        )
    _check_not_written_here(folder, "scorer", setting)
    return folder


def perceptual_fingerprints(block: object, name: str) -> dict[str, str]:
    """{path: fingerprint} of the weights that `<name>.perceptual` names; {} without that block."""
    settings = block.get("perceptual") if isinstance(block, dict) else None
    if not isinstance(settings, dict):
        return {}
    fingerprints = {}
    for path in (settings.get("network"), settings.get("lpips")):
        if not isinstance(path, str):  # null, or a mistake that reading the section names
            continue
        folder = perceptual_folder(path, name)
        if folder is None and not Path(path).is_file():
            raise ConfigError(
                f"params.yaml: {name}.perceptual names {path}, but there is no such file or folder"
            )
        fingerprints[path] = fingerprint_of(folder) if folder else sha256_of(Path(path))
    return fingerprints


def part_of(folder: Path, name: str) -> Path:
    """A package's part of that name; the folder of a single model as it is."""
    is_package = (folder / "package.json").is_file() or (folder / name).is_dir()
    return folder / name if is_package else folder


def kind_of(folder: Path) -> str | None:
    """The section whose model a folder holds: "generator"; None if it is a file, or another folder."""
    if (folder / "tokenizer.json").is_file():
        return "text_tokenizer"
    try:
        family = json.loads((folder / "config.json").read_bytes())["family"]
    except (OSError, ValueError, LookupError, TypeError):
        is_empty = folder.is_dir() and not any(folder.iterdir())
        return "a damaged model" if is_empty or (folder / "weights.safetensors").is_file() else None
    return next((name for name in SECTIONS if f"{name}s" == family), "a damaged model")


def fix_of(name: str, folder: Path) -> str:
    """The command that makes a damaged or missing init folder sound."""
    if name == "image_tokenizer" and folder.name != name:
        return (
            f"python -m thousandwords import-weights FILES --out {folder}, where FILES are the published ones"
        )
    return f"cp -r FOLDER {folder}, where FOLDER is the {name} of a finished run, or its package"


def fingerprint_of(folder: Path) -> str:
    """What the manifest of a model's folder says of its bytes; raises DamagedArtefact without one."""
    return read_manifest(folder, verify=False)["sha256"]


def read_record(name: str, folder: Path = RECORDS) -> dict:
    """What `write_record` wrote last for that section; {} if nothing."""
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def write_record(
    name: str,
    init: str | None,
    model: Path | None,
    folder: Path = RECORDS,
    perceptual: dict[str, str] | None = None,
) -> None:
    """Record where the model of `<name>.init` lies and its fingerprint, and those of `perceptual_fingerprints`."""
    fingerprint = model and fingerprint_of(model)
    model = model and model.as_posix()
    record = {"section": name, "init": init, "folder": model, "fingerprint": fingerprint}
    record |= {"perceptual": perceptual} if perceptual else {}
    write_json(folder / f"{name}.json", record)


def _fetched_folder(init: str, name: str) -> Path:
    record = read_record(name)
    if record.get("init") != init or not Path(record.get("folder") or "").is_dir():
        raise ConfigError(
            f"params.yaml: {name}.init is {init}, which was not fetched yet. Run: dvc repro -f check_params"
        )
    return Path(record["folder"])
