"""An image tokenizer that was trained elsewhere (`image_tokenizer.init`), checked before anything depends on it."""

import dataclasses
from functools import partial
from pathlib import Path

import torch
from torch import nn

from thousandwords import components
from thousandwords.core.config import ConfigError, check_keys, model_block, section
from thousandwords.core.init_models import fix_of, init_folder
from thousandwords.core.manifest import copy_artifact
from thousandwords.core.model_files import read_header
from thousandwords.data.loader import ImageConfig

NAME = "image_tokenizer"


def folder_of(block: dict) -> Path | None:
    """The folder of the pretrained tokenizer, or None where one is trained here."""
    return init_folder(block, NAME)


def check_block(block: dict) -> ImageConfig:
    """How its images are prepared and what is trained; ConfigError unless the block is valid for a tokenizer to train
    or to go on from."""
    kind, folder = block.get("kind"), folder_of(block)
    if folder is None:
        config = model_block({key: value for key, value in block.items() if key != "init"}, NAME, ImageConfig)
        if config.tune != "none":
            raise ConfigError(
                f"params.yaml: {NAME}.tune is {config.tune}, but {NAME}.init names no model to go on from. "
                f"Set {NAME}.init, or remove {NAME}.tune"
            )
        return config
    if kind in block:
        raise ConfigError(
            f"params.yaml: {NAME}.{kind} cannot be used with {NAME}.init: {folder} has its own settings. "
            "Remove one of the two"
        )
    # without tune, training and augmentation are allowed: they apply again once init is removed
    keys = [field.name for field in dataclasses.fields(ImageConfig)]
    check_keys(block, NAME, ["kind", "init"], optional=["training", *keys])
    config = section({key: block[key] for key in keys if key in block}, NAME, ImageConfig)
    if config.tune == "none":
        return ImageConfig()
    check_keys(block, NAME, ["kind", "init", "training", "tune"], optional=keys)
    return config


def architecture(block: dict, image_size: int) -> nn.Module:
    """The tokenizer of `init` for images of that size, on torch's meta device; every byte of the folder is checked.

    Raises ConfigError or DamagedArtefact, one sentence with the fix, if the folder is missing, damaged or
    does not fit.
    """
    folder, kind = folder_of(block), block["kind"]
    origin, fix = f"the tokenizer of {NAME}.init, {folder}", fix_of(NAME, folder)
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
    if components.shapes(original) != components.shapes(resized):
        raise ConfigError(
            f"params.yaml: data.image_size is {image_size}, but {origin}, takes images of "
            f"{original.image_size} pixels only. Set data.image_size: {original.image_size}"
        )
    return resized


def load(block: dict, image_size: int) -> nn.Module:
    """The tokenizer of `init` with its weights, checked, for images of that size."""
    architecture(block, image_size)
    folder = folder_of(block)
    return components.load("image_tokenizers", folder, fix_of(NAME, folder), image_size=image_size)


def save(model: nn.Module, block: dict, out: Path) -> None:
    """Write the tokenizer of `init`: the same bytes, so that its tokens stay valid; at another image size, one
    that records the fingerprint of the folder it was taken from."""
    if model.built_as["arguments"] == model.header["arguments"]:
        copy_artifact(folder_of(block), out)
        return
    metadata = {name: value for name, value in model.header.items() if name not in model.built_as}
    components.save(model, out, **metadata, taken_from=model.fingerprint)
