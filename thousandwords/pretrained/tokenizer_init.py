"""An image tokenizer that was trained elsewhere (`image_tokenizer.init`): what it has to be before anything is built on it."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from thousandwords import components
from thousandwords.checkpoints import read_header
from thousandwords.config import ConfigError, check_keys, model_block
from thousandwords.loader import PictureSettings

NAME = "image_tokenizer"


def folder_of(block: dict) -> Path | None:
    """The folder that the block takes its tokenizer from, or None where it is to be trained here."""
    folder = block.get("init")
    if folder is not None and not (isinstance(folder, str) and folder):
        raise ConfigError(f"params.yaml: {NAME}.init should be a folder, or null to train one here; found {folder!r}")
    return None if folder is None else Path(folder)


def check_block(block: dict) -> PictureSettings:
    """How its pictures are prepared; raises ConfigError unless the block is one of a tokenizer to be trained or taken over."""
    kind, folder = block.get("kind"), folder_of(block)
    if folder is None:
        return model_block({key: value for key, value in block.items() if key != "init"}, NAME, PictureSettings)
    if kind in block:
        raise ConfigError(
            f"params.yaml: {NAME}.{kind} has no use beside {NAME}.init: {folder} brings its own settings. "
            "Leave one of the two out"
        )
    check_keys(block, NAME, ["kind", "init"], optional=["training", "augmentation"])  # tolerated: they are for the way back
    return PictureSettings()


def architecture(block: dict, image_size: int) -> nn.Module:
    """The tokenizer of `init` for pictures of that size, on torch's meta device; every byte of the folder is checked.

    Raises ConfigError or DamagedArtefact: one sentence with the mend where the folder is missing, damaged or does not fit.
    """
    folder = folder_of(block)
    header = _header(folder, block["kind"])
    try:
        with torch.device("meta"):
            own = components.rebuild("tokenizers", folder, header, mend_of(folder))
            wanted = components.rebuild("tokenizers", folder, header, mend_of(folder), image_size=image_size)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: data.{error}; that is the tokenizer of {NAME}.init, {folder}") from error
    if _shapes(own) != _shapes(wanted):
        raise ConfigError(
            f"params.yaml: data.image_size is {image_size}, but the tokenizer of {NAME}.init, {folder}, takes pictures of "
            f"{own.image_size} pixels only. Set data.image_size: {own.image_size}"
        )
    return wanted


def load(block: dict, image_size: int) -> nn.Module:
    """The tokenizer of `init` with its weights, checked, for pictures of that size."""
    architecture(block, image_size)
    folder = folder_of(block)
    return components.load("tokenizers", folder, mend_of(folder), image_size=image_size)


def facts_of(model: nn.Module) -> dict:
    """What a taken over tokenizer keeps of its origin: the facts of its header, and the fingerprint of its folder."""
    facts = {name: value for name, value in model.header.items() if name not in model.built_as}
    return {**facts, "taken_from": model.fingerprint}


def mend_of(folder: Path) -> str:
    """The command that writes the folder."""
    return f"python -m thousandwords convert --encoder encoder.pkl --decoder decoder.pkl --out {folder}"


def _header(folder: Path, kind: str) -> dict:
    if not folder.is_dir():
        raise ConfigError(f"params.yaml: {NAME}.init is {folder}, but there is no such folder. Run: {mend_of(folder)}")
    header = read_header(folder, mend_of(folder))
    if header["family"] == "tokenizers" and header["kind"] != kind:
        raise ConfigError(
            f"params.yaml: {NAME}.kind is {kind!r}, but {NAME}.init, {folder}, holds a {header['kind']!r}. "
            f"Set {NAME}.kind: {header['kind']}"
        )
    return header


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
