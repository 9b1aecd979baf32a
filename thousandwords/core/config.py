"""A section of params.yaml -> a frozen dataclass, strictly: every unknown, missing or mistyped key is an
error.
"""

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from thousandwords.core.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A setting is unknown, missing, of the wrong type, or out of range."""


# keys of earlier versions -> their new names, for the error message
RENAMED_KEYS = {
    "word_dimensions": "codebook_init_dims",
    "word_images": "codebook_init_images",
    "usage_weight": "usage_entropy_weight",
    "argmax_from": "decoder_only_from",
    "muon_factor": "muon_lr_scale",
    "variance_limit": "second_moment_clip",
    "accumulation": "gradient_accumulation",
    "processes": "num_processes",
    "parallel": "strategy",
    "recompute": "activation_checkpointing",
    "complete": "inpaint",
    "complete_share": "inpaint_keep_share",
    "pictures": "num_images",
    "kmeans_pictures": "kmeans_images",
    "frechet_pictures": "fid_images",
    "overlap_pictures": "overlap_images",
    "shown": "report_images",
    "near_duplicate_colour": "near_duplicate_color",
}


def section(values: dict, name: str, cls: type[T], file: str = "params.yaml") -> T:
    """The dataclass `cls` filled from `values`, the part of `file` (if they are from one) called `name`.

    Raises ConfigError with one sentence: section({"vocabsize": 2}, "image_tokenizer.dvae", DVAEConfig) ->
    "params.yaml: image_tokenizer.dvae has no key 'vocabsize'. Did you mean 'vocab_size'?"
    """
    try:
        return _fill(values, name, cls)
    except _Invalid as error:
        raise ConfigError(f"{file}: {error}" if file else str(error)) from error.__cause__


def check_keys(
    values: dict, name: str, required: Iterable[str], optional: Iterable[str] = (), file: str = "params.yaml"
) -> None:
    """Raise ConfigError unless `values` has all `required` keys, and no others except `optional` ones."""
    required, optional = list(required), list(optional)
    for key in values:
        if key not in required + optional:
            raise ConfigError(f"{file}: {name} has no key {key!r}.{_suggestion(key, required + optional)}")
    for key in required:
        if key not in values:
            raise ConfigError(f"{file}: {name} lacks the key {key!r}")


def model_block(block: dict, name: str, cls: type[T]) -> T:
    """The dataclass `cls` filled from the keys of a model's block other than `kind`, that kind's settings and
    `training`.

    Raises ConfigError if one of those three is missing, or if another key is not a field of `cls`. A model that
    starts from another (`init`) has the settings of that one, and the kind none has neither settings nor training.
    """
    optional = [field.name for field in dataclasses.fields(cls)]
    kind = block.get("kind")
    if kind == "none":
        check_keys(block, name, ["kind"])
    elif block.get("init") is None:
        check_keys(block, name, ["kind", kind, "training"], optional)
    else:
        check_keys(block, name, ["kind", "training"], [*optional, kind])
    return section({key: block[key] for key in optional if key in block}, name, cls)


def check_minimums(config: object, name: str, **minimums: float) -> None:
    """Raise ValueError if a field of `config`, the section called `name`, is below its minimum; None never is."""
    for field, minimum in minimums.items():
        value = getattr(config, field)
        if value is not None and not value >= minimum:
            raise ValueError(f"{name}.{field} is {value}; it needs to be {minimum} or more")


def check_positive(config: object, name: str, *fields: str) -> None:
    """Raise ValueError if one of the fields of `config`, the section called `name`, is a number that is not above 0."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and not value > 0:
            raise ValueError(f"{name}.{field} is {value}; it needs to be above 0")


class _Invalid(Exception):
    """What is wrong with a section, without the name of the file."""


def _fill(values: dict, name: str, cls: type[T]) -> T:
    if not isinstance(values, dict):
        raise _Invalid(f"{name} should be a block of keys, found {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise _Invalid(f"{name} has no key {key!r}.{_suggestion(key, fields)}")
    for key, field in fields.items():
        if key not in values and _is_required(field):
            raise _Invalid(f"{name} lacks the key {key!r} ({_type_name(hints[key])})")
    arguments = {key: _convert(value, hints[key], f"{name}.{key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise _Invalid(_with_parent(str(error), name)) from error


def _with_parent(message: str, name: str) -> str:
    """ "training.steps is 0" from the section "generator.training" -> "generator.training.steps is 0"."""
    parent, _, own_name = name.rpartition(".")
    return f"{parent}.{message}" if parent and message.startswith(f"{own_name}.") else message


def _suggestion(key: str, keys: Iterable[str]) -> str:
    keys = list(keys)
    if RENAMED_KEYS.get(key) in keys:
        return f" It is called {RENAMED_KEYS[key]!r} now. Rename it"
    close = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Its keys are: {', '.join(keys)}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(value: Any, expected: Any, name: str) -> Any:
    """`value` as the type `expected`; an int may become a float (3 -> 3.0), nothing else is converted."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, expected, name)
    if origin is typing.Literal:
        if value in arguments:
            return value
        choices = ", ".join(str(choice) for choice in arguments)
        raise _Invalid(f"{name} is {value!r}; it can be: {choices}")
    if origin in (tuple, list):
        return _convert_sequence(value, origin, arguments, name)
    if origin is dict and isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(expected):
        return value if isinstance(value, expected) else _fill(value, name, expected)
    return _convert_scalar(value, expected, name)


def _convert_union(value: Any, arguments: tuple, expected: Any, name: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    if len(options) == 1:
        return _convert(value, options[0], name)
    for option in options:
        try:
            return _convert(value, option, name)
        except (ConfigError, _Invalid):
            continue
    raise _Invalid(f"{name} should be {_type_name(expected)}, found {value!r}")


def _convert_sequence(value: Any, origin: type, arguments: tuple, name: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _Invalid(f"{name} should be a list, found {value!r}. Write it as [a, b]")
    is_fixed = origin is tuple and bool(arguments) and arguments[-1] is not Ellipsis
    if is_fixed and len(arguments) != len(value):
        raise _Invalid(f"{name} should hold {len(arguments)} values, found {len(value)}")
    items = arguments if is_fixed else (arguments or (Any,))[:1] * len(value)
    return origin(_convert(value[index], item, f"{name}[{index}]") for index, item in enumerate(items))


def _convert_scalar(value: Any, expected: type, name: str) -> Any:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an int of 400 digits does not fit in a float
            return float(value)
    if expected is int and isinstance(value, bool):
        raise _Invalid(f"{name} should be a whole number, found {value!r}")
    if isinstance(expected, type) and isinstance(value, expected):
        return value
    hint = _scalar_hint(value, expected)
    raise _Invalid(f"{name} should be {_type_name(expected)}, found {value!r}{hint}")


def _scalar_hint(value: Any, expected: type) -> str:
    """YAML reads `1e-3` as text, the most frequent cause of a wrong number; the message says so."""
    if expected is float and isinstance(value, str):
        try:
            number = repr(float(value))
        except ValueError:
            return ""
        return f" (YAML reads that as text; write {number if '.' in number else number.replace('e', '.0e')})"
    return ""


def _type_name(expected: Any) -> str:
    """tuple[int, ...] | None -> "a list of whole numbers or null" """
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type_name, arguments))
    if origin in (tuple, list):
        item = _type_name(arguments[0]).removeprefix("a ")
        count = f"{len(arguments)} " if origin is tuple and arguments[-1] is not ... else ""
        return f"a list of {count}{item}{'' if item == 'text' else 's'}"
    return names.get(expected) or str(expected).replace("typing.", "")
