"""A section of params.yaml -> a frozen dataclass, strictly: every unknown, missing or mistyped key is an error.

One loader for all sections, so that a knob nobody reads cannot exist. No YAML here: sections come in as dicts.
"""
from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from thousandwords.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A setting is unknown, missing, of the wrong type, or out of range."""


def section(values: dict, name: str, cls: type[T]) -> T:
    """The dataclass `cls` filled from `values`, the part of params.yaml called `name`.

    Raises ConfigError with one sentence: section({"vocabsize": 2}, "image_tokenizer.dvae", Config) ->
    "params.yaml: image_tokenizer.dvae has no key 'vocabsize'. Did you mean 'vocab_size'?"
    """
    if not isinstance(values, dict):
        raise ConfigError(f"params.yaml: {name} should be a block of keys, found {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"params.yaml: {name} has no key {key!r}.{_suggestion(key, fields)}")
    for key, field in fields.items():
        if key not in values and _is_required(field):
            raise ConfigError(f"params.yaml: {name} lacks the key {key!r} ({_type_name(hints[key])})")
    filled = {key: _convert(value, hints[key], f"{name}.{key}") for key, value in values.items()}
    try:
        return cls(**filled)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"params.yaml: {_in_full(str(error), name)}") from error


def _in_full(message: str, name: str) -> str:
    """"training.steps is 0", said by the section "generator.training", -> "generator.training.steps is 0"."""
    parent, _, own_name = name.rpartition(".")
    return f"{parent}.{message}" if parent and message.startswith(f"{own_name}.") else message


def check_keys(values: dict, name: str, known: typing.Iterable[str], optional: typing.Iterable[str] = ()) -> None:
    """Raises ConfigError unless `values` has all the `known` keys, and besides them `optional` ones alone."""
    known, optional = list(known), list(optional)
    for key in values:
        if key not in known + optional:
            raise ConfigError(f"params.yaml: {name} has no key {key!r}.{_suggestion(key, known + optional)}")
    for key in known:
        if key not in values:
            raise ConfigError(f"params.yaml: {name} lacks the key {key!r}")


def model_block(block: dict, name: str, cls: type[T]) -> T:
    """The dataclass `cls` filled from what a model's block may hold beside its kind, that kind's settings and `training`.

    Raises ConfigError where one of those three is missing, or a key is neither theirs nor a field of `cls`.
    """
    optional = [field.name for field in dataclasses.fields(cls)]
    check_keys(block, name, ["kind", block.get("kind"), "training"], optional)
    return section({key: block[key] for key in optional if key in block}, name, cls)


def _suggestion(key: str, known: typing.Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" It knows: {', '.join(known)}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(value: Any, wanted: Any, name: str) -> Any:
    """`value` as the annotated type `wanted`; numbers may widen (3 -> 3.0), nothing else is guessed."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, wanted, name)
    if origin is typing.Literal:
        if value in arguments:
            return value
        choices = ", ".join(str(choice) for choice in arguments)
        raise ConfigError(f"params.yaml: {name} is {value!r}; it can be: {choices}")
    if origin in (tuple, list):
        return _convert_sequence(value, origin, arguments, name)
    if origin is dict and isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(wanted):
        return value if isinstance(value, wanted) else section(value, name, wanted)
    return _convert_scalar(value, wanted, name)


def _convert_union(value: Any, arguments: tuple, wanted: Any, name: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    if len(options) == 1:
        return _convert(value, options[0], name)
    for option in options:
        try:
            return _convert(value, option, name)
        except ConfigError:
            continue
    raise ConfigError(f"params.yaml: {name} should be {_type_name(wanted)}, found {value!r}")


def _convert_sequence(value: Any, origin: type, arguments: tuple, name: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"params.yaml: {name} should be a list, found {value!r}")
    is_fixed = origin is tuple and bool(arguments) and arguments[-1] is not Ellipsis
    if is_fixed and len(arguments) != len(value):
        raise ConfigError(f"params.yaml: {name} should hold {len(arguments)} values, found {len(value)}")
    items = arguments if is_fixed else (arguments or (Any,))[:1] * len(value)
    return origin(_convert(value[index], item, f"{name}[{index}]") for index, item in enumerate(items))


def _convert_scalar(value: Any, wanted: type, name: str) -> Any:
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # 400 digits are no float
            return float(value)
    if wanted is int and isinstance(value, bool):
        raise ConfigError(f"params.yaml: {name} should be a whole number, found {value!r}")
    if isinstance(wanted, type) and isinstance(value, wanted):
        return value
    hint = _scalar_hint(value, wanted)
    raise ConfigError(f"params.yaml: {name} should be {_type_name(wanted)}, found {value!r}{hint}")


def _scalar_hint(value: Any, wanted: type) -> str:
    """YAML reads `1e-3` as text; say so, since that is how most wrong numbers come about."""
    if wanted is float and isinstance(value, str):
        try:
            number = repr(float(value))
        except ValueError:
            return ""
        return f" (YAML reads that as text; write {number if '.' in number else number.replace('e', '.0e')})"
    return ""


def _type_name(wanted: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(wanted) or str(wanted).replace("typing.", "")
