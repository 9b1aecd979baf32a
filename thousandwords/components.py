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

import torch
from torch import Tensor, nn

from thousandwords.core import model_files
from thousandwords.core.config import ConfigError, section
from thousandwords.core.errors import UserError
from thousandwords.core.init_models import fix_of, init_folder
from thousandwords.nn.image_losses import kept_weights

CONTRACTS = {
    "image_tokenizers": "ImageTokenizer",
    "decoders": "Decoder",
    "generators": "Generator",
    "scorers": "Scorer",
    "captioners": "Captioner",
}


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


def build_from(
    family: str, block: dict, name: str, folder: Path, load_weights: bool = True, **arguments
) -> nn.Module:
    """The model of `<name>.init`, to be trained further: the settings of `folder`, with those of the block that
    may change, and the sizes `arguments` of this run.

    Raises ConfigError, one sentence with the fix, if the block or the sizes do not fit the weights.
    """
    fix = fix_of(name, folder)
    header = model_files.read_header(folder, fix)
    kind, init = block.get("kind"), f"{name}.init, {block['init']}"
    if header["family"] == family and header["kind"] != kind:
        raise ConfigError(
            f"params.yaml: {name}.kind is {kind!r}, but {init}, holds a {header['kind']!r}. "
            f"Set {name}.kind: {header['kind']}"
        )
    with torch.device("meta"):
        saved = rebuild(family, folder, header, fix)
    settings = block.get(kind) or {}
    merged = {**header["config"], **settings} if isinstance(settings, dict) else settings
    config = section(merged, f"{name}.{kind}", type(saved.config))
    for key in settings:
        before, now = getattr(saved.config, key), getattr(config, key)
        # what has weights of its own may change, but not from or to null
        may_change = key in getattr(config, "MAY_CHANGE", ()) and (before is None) == (now is None)
        if before != now and not may_change:
            raise ConfigError(
                f"params.yaml: {name}.{kind}.{key} is {now}, but {init}, has {before}. "
                f"Remove {name}.{kind}.{key}, or {name}.init"
            )
    with torch.device("meta"):
        built = shapes(build(family, kind, config, **arguments))
    if built != shapes(saved):
        made_for = saved.built_as["arguments"]
        key = next(key for key in arguments if arguments[key] != made_for[key])
        raise ConfigError(
            f"params.yaml: {init}, was trained for {key} {made_for[key]}, but this run has {arguments[key]}. "
            "Use the data.image_size, text_tokenizer.init and image_tokenizer.init of that model"
        )
    model = build(family, kind, config, **arguments)
    if load_weights:
        weights = model_files.read_model(folder, fix)
        model_files.load_state(model, weights.state, folder)
        model.fingerprint, model.header = weights.fingerprint, weights.header
    return model


def first_model(family: str, block: dict, name: str, **arguments) -> tuple[nn.Module, dict[str, str]]:
    """The model that a training starts with, and {"init": fingerprint} if that is the one of `init`."""
    if folder := init_folder(block, name):
        model = build_from(family, block, name, folder, **arguments)
        return model, {"init": model.fingerprint}
    return build(family, block["kind"], model_config(family, block, name), **arguments), {}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all weights and buffers that are saved."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def save(model: nn.Module, folder: Path, state: dict | None = None, **metadata) -> str:
    """Write a built model (or other weights of it) as safetensors + JSON; returns its fingerprint."""
    header = {**model.built_as, **metadata}
    return model_files.write_model(folder, header, kept_weights(model) if state is None else state)


def load(family: str, folder: Path, fix: str = "dvc checkout, or dvc repro", **changes: object) -> nn.Module:
    """The model saved in `folder`, verified, in evaluation mode, with its `fingerprint` and its `header`.

    `changes` replace arguments it was built with: image_size=64.
    """
    saved = model_files.read_model(folder, fix)
    model = rebuild(family, folder, saved.header, fix, **changes)
    model_files.load_state(model, saved.state, folder)
    model.fingerprint, model.header = saved.fingerprint, saved.header
    return model.eval().requires_grad_(False)


class WithDecoder(nn.Module):
    """An image tokenizer whose images come from a decoder; the tokens, and all else, are the tokenizer's own."""

    def __init__(self, tokenizer: nn.Module, decoder: nn.Module):
        super().__init__()
        self.tokenizer, self.decoder = tokenizer, decoder

    @property
    def paints_kept(self) -> bool:
        """Whether candidates are ranked by the tokenizer's images, and the decoder makes the kept ones (`decoder.paint`)."""
        return self.decoder.header.get("paint") == "kept"

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode token ids (B, L) int64 to images (B, 3, H, W) in [0, 1]."""
        return self.decoder.decode(tokens, self.tokenizer.decode(tokens))

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.tokenizer, name)


def ranked_by(image_tokenizer: nn.Module) -> nn.Module:
    """What makes the images that candidates are ranked by: without the decoder where that makes the kept ones only."""
    return image_tokenizer.tokenizer if getattr(image_tokenizer, "paints_kept", False) else image_tokenizer


def with_decoder(tokenizer: nn.Module, decoder: nn.Module, fix: str = "dvc repro train_decoder") -> nn.Module:
    """The image tokenizer with that decoder, or itself with a decoder of the kind none.

    Raises UserError if the decoder was trained for another tokenizer.
    """
    if not decoder.is_trainable:
        return tokenizer
    expected = decoder.header["image_tokenizer"]
    if tokenizer.fingerprint != expected:
        raise UserError(
            f"the decoder was trained with image_tokenizer {expected[:12]}, but the image tokenizer here is "
            f"{tokenizer.fingerprint[:12]}. Run: {fix}"
        )
    return WithDecoder(tokenizer, decoder).eval()


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
