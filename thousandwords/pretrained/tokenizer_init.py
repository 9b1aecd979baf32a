"""An image tokenizer that was trained elsewhere (`image_tokenizer.init`), checked before anything depends on it."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from thousandwords import components
from thousandwords.core.config import ConfigError, check_keys, model_block
from thousandwords.core.model_files import read_header
from thousandwords.data.loader import ImageConfig

NAME = "image_tokenizer"


def folder_of(block: dict) -> Path | None:
    """The folder of the pretrained tokenizer, or None where one is trained here."""
    folder = block.get("init")
    if folder is not None and not (isinstance(folder, str) and folder):
        raise ConfigError(
            f"params.yaml: {NAME}.init should be a folder, or null to train one here; found {folder!r}"
        )
    return None if folder is None else Path(folder)


def check_block(block: dict) -> ImageConfig:
    """How its images are prepared; ConfigError unless the block is valid for a tokenizer to train or to import."""
    kind, folder = block.get("kind"), folder_of(block)
    if folder is None:
        return model_block({key: value for key, value in block.items() if key != "init"}, NAME, ImageConfig)
    if kind in block:
        raise ConfigError(
            f"params.yaml: {NAME}.{kind} cannot be used with {NAME}.init: {folder} has its own settings. "
            "Remove one of the two"
        )
    # training and augmentation are allowed: they apply again once init is removed
    check_keys(block, NAME, ["kind", "init"], optional=["training", "augmentation"])
    return ImageConfig()


def architecture(block: dict, image_size: int) -> nn.Module:
    """The tokenizer of `init` for images of that size, on torch's meta device; every byte of the folder is checked.

    Raises ConfigError or DamagedArtefact, one sentence with the fix, if the folder is missing, damaged or
    does not fit.
    """
    folder, kind = folder_of(block), block["kind"]
    origin, fix = f"the tokenizer of {NAME}.init, {folder}", _fix(folder)
    if not folder.is_dir():
        raise ConfigError(f"params.yaml: {NAME}.init is {folder}, but there is no such folder. Run: {fix}")
    header = read_header(folder, fix)
    if header["family"] == "image_tokenizers" and header["kind"] != kind:
        raise ConfigError(
            f"params.yaml: {NAME}.kind is {kind!r}, but {NAME}.init, {folder}, holds a {header['kind']!r}. "
            f"Set {NAME}.kind: {header['kind']}"
        )
    rebuild = partial(components.rebuild, "image_tokenizers", folder, header, fix)
    try:
        with torch.device("meta"):
            original, resized = rebuild(), rebuild(image_size=image_size)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: data.{error}; that is {origin}") from error
    if _shapes(original) != _shapes(resized):
        raise ConfigError(
            f"params.yaml: data.image_size is {image_size}, but {origin}, takes images of "
            f"{original.image_size} pixels only. Set data.image_size: {original.image_size}"
        )
    return resized


def load(block: dict, image_size: int) -> nn.Module:
    """The tokenizer of `init` with its weights, checked, for images of that size."""
    architecture(block, image_size)
    folder = folder_of(block)
    return components.load("image_tokenizers", folder, _fix(folder), image_size=image_size)


def metadata_of(model: nn.Module) -> dict:
    """What an imported tokenizer records of its origin: its header's metadata, and its folder's fingerprint."""
    metadata = {name: value for name, value in model.header.items() if name not in model.built_as}
    return {**metadata, "taken_from": model.fingerprint}


def _fix(folder: Path) -> str:
    """The command that writes the folder."""
    return (
        f"python -m thousandwords import-weights --encoder encoder.pkl --decoder decoder.pkl --out {folder}"
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
