"""component(family, kind): the one place that reaches the families.

A kind is a file: `tokenizers/dvae.py` is `kind: dvae`. The file holds a frozen dataclass `Config` and one class that
keeps its family's contract; it is found by looking, so a new model is one new file and one new block in params.yaml.
"""
from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from pathlib import Path

from torch import nn

from thousandwords import checkpoints
from thousandwords.config import ConfigError, section

CONTRACTS = {"tokenizers": "ImageTokenizer", "generators": "Generator", "scorers": "Scorer"}


def kinds(family: str) -> list[str]:
    """The kinds of a family: its files, but for those that begin with an underscore. kinds("scorers") -> ["clip"]"""
    return sorted(path.stem for path in (Path(__file__).parent / family).glob("[!_]*.py"))


def component(family: str, kind: str) -> tuple[type[nn.Module], type]:
    """(model class, Config class) of one kind; raises ConfigError that lists the kinds there are."""
    if kind not in kinds(family):
        close = difflib.get_close_matches(str(kind), kinds(family), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"params.yaml: {family} has no kind {kind!r}.{hint} There is: {', '.join(kinds(family))}"
        )
    module = importlib.import_module(f"thousandwords.{family}.{kind}")
    contract = getattr(importlib.import_module(f"thousandwords.{family}"), CONTRACTS[family])
    models = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, contract) and value.__module__ == module.__name__
    ]
    assert len(models) == 1, f"{module.__name__} should hold one {contract.__name__}, found {models}"
    return models[0], module.Config


def model_config(family: str, block: dict, name: str) -> object:
    """The Config of the kind that a params.yaml block picks: {"kind": "dvae", "dvae": {…}} -> dvae.Config(…)"""
    kind = block.get("kind")
    _, config_class = component(family, kind)
    return section(block.get(kind) or {}, f"{name}.{kind}", config_class)


def build(family: str, kind: str, config: object, **arguments) -> nn.Module:
    """A fresh model that knows how it was built, so that `save` can write it down."""
    model_class, _ = component(family, kind)
    model = model_class(config, **arguments)
    model.built_as = {
        "family": family,
        "kind": kind,
        "config": dataclasses.asdict(model.config),  # the model's own: pretrained weights bring their sizes along
        "arguments": arguments,
    }
    return model


def save(model: nn.Module, folder: Path, state: dict | None = None, **facts) -> str:
    """Writes a built model (or, with `state`, other weights of it) as safetensors + JSON; returns its fingerprint."""
    header = {**model.built_as, **facts}
    return checkpoints.write_model(folder, header, model.state_dict() if state is None else state)


def load(family: str, folder: Path, mend: str = "dvc checkout, or dvc repro", **changes: object) -> nn.Module:
    """The model saved in `folder`, verified, in evaluation mode, with its `fingerprint` and its `header`.

    `changes` are arguments that differ from those it was built with: image_size=64.
    """
    saved = checkpoints.read_model(folder, mend)
    model = rebuild(family, folder, saved.header, mend, **changes)
    checkpoints.fill(model, saved.state, folder)
    model.fingerprint, model.header = saved.fingerprint, saved.header
    return model.eval().requires_grad_(False)


def rebuild(family: str, folder: Path, header: dict, mend: str = "dvc checkout, or dvc repro", **changes) -> nn.Module:
    """The model that the header of `folder` tells of, with first weights; raises ConfigError where it can't be built."""
    if header["family"] != family:
        raise ConfigError(f"{folder} holds one of the {header['family']}, but one of the {family} was wanted")
    config = _written_config(folder, header, mend)
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in header["arguments"].items()}
    return build(family, header["kind"], config, **{**arguments, **changes})


def _written_config(folder: Path, header: dict, mend: str) -> object:
    """The Config in a model's header; raises ConfigError where this code has no such kind, or the kind no such key."""
    try:
        _, config_class = component(header["family"], header["kind"])
        return section(header["config"], header["kind"], config_class)
    except ConfigError as error:
        reason = str(error).removeprefix("params.yaml: ")
        raise ConfigError(f"{folder} was written by another version of this code: {reason}. Run: {mend}") from error
