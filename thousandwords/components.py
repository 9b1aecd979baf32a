"""Build, save and load models by (family, kind): the one place that imports the families.

A kind is a folder with a model.py: `image_tokenizers/dvae/` is `kind: dvae`. Its model.py holds one class
that implements the family's contract, whose `config_class` is a frozen dataclass. Kinds are found by their
folders, so a new model is one new folder and one new block in params.yaml.
"""

import dataclasses
import difflib
import importlib
import inspect
from pathlib import Path

from torch import nn

from thousandwords.core import model_files
from thousandwords.core.config import ConfigError, section

CONTRACTS = {"image_tokenizers": "ImageTokenizer", "generators": "Generator", "scorers": "Scorer"}


def kinds(family: str) -> list[str]:
    """The kinds of a family, its folders with a model.py: kinds("scorers") -> ["clip"]."""
    return sorted(path.parent.name for path in (Path(__file__).parent / family).glob("*/model.py"))


def component(family: str, kind: str) -> tuple[type[nn.Module], type]:
    """The model class and config class of a kind; raises ConfigError with a list of the existing kinds."""
    if kind not in kinds(family):
        close = difflib.get_close_matches(str(kind), kinds(family), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        names = ", ".join(kinds(family))
        raise ConfigError(f"params.yaml: {family} has no kind {kind!r}.{hint} There is: {names}")
    module = importlib.import_module(f"thousandwords.{family}.{kind}.model")
    contract = getattr(importlib.import_module(f"thousandwords.{family}.base"), CONTRACTS[family])
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    models = [each for each in classes if issubclass(each, contract) and each.__module__ == module.__name__]
    assert len(models) == 1, f"{module.__name__} must have one {contract.__name__}, but has {models}"
    return models[0], models[0].config_class


def model_config(family: str, block: dict, name: str) -> object:
    """The config of the kind that a block of params.yaml names: {"kind": "dvae", "dvae": {…}} -> DVAEConfig(…)"""
    kind = block.get("kind")
    _, config_class = component(family, kind)
    return section(block.get(kind) or {}, f"{name}.{kind}", config_class)


def build(family: str, kind: str, config: object, **arguments) -> nn.Module:
    """A new model, with the header that `save` writes in `built_as`."""
    model_class, _ = component(family, kind)
    model = model_class(config, **arguments)
    # the model's own config, which has the sizes of pretrained weights
    config = dataclasses.asdict(model.config)
    model.built_as = {"family": family, "kind": kind, "config": config, "arguments": arguments}
    return model


def save(model: nn.Module, folder: Path, state: dict | None = None, **metadata) -> str:
    """Write a built model (or other weights of it) as safetensors + JSON; returns its fingerprint."""
    header = {**model.built_as, **metadata}
    return model_files.write_model(folder, header, model.state_dict() if state is None else state)


def load(family: str, folder: Path, fix: str = "dvc checkout, or dvc repro", **changes: object) -> nn.Module:
    """The model saved in `folder`, verified, in evaluation mode, with its `fingerprint` and its `header`.

    `changes` replace arguments it was built with: image_size=64.
    """
    saved = model_files.read_model(folder, fix)
    model = rebuild(family, folder, saved.header, fix, **changes)
    model_files.load_state(model, saved.state, folder)
    model.fingerprint, model.header = saved.fingerprint, saved.header
    return model.eval().requires_grad_(False)


def rebuild(
    family: str, folder: Path, header: dict, fix: str = "dvc checkout, or dvc repro", **changes
) -> nn.Module:
    """The model of a saved header, with first weights; raises ConfigError if it cannot be built."""
    if header["family"] not in CONTRACTS:  # image_tokenizers was called tokenizers
        raise ConfigError(f"{folder} was written by an earlier version of thousandwords. Run: {fix}")
    if header["family"] != family:
        raise ConfigError(f"{folder} holds one of the {header['family']}, not one of the {family}")
    try:
        _, config_class = component(header["family"], header["kind"])
        config = section(header["config"], header["kind"], config_class)
    except ConfigError as error:
        reason = str(error).removeprefix("params.yaml: ")
        message = f"{folder} was written by another version of this code: {reason}. Run: {fix}"
        raise ConfigError(message) from error
    saved = header["arguments"].items()
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in saved}
    return build(family, header["kind"], config, **{**arguments, **changes})
