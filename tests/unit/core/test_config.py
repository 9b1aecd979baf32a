"""A section of params.yaml becomes a dataclass, or one sentence that says what to change."""

from dataclasses import dataclass, make_dataclass
from typing import Literal

import pytest
import yaml

from thousandwords.core.config import RENAMED_KEYS, ConfigError, check_keys, model_block, section


@dataclass(frozen=True)
class Crop:
    side: int = 3
    background: tuple[int, int, int] = (255, 255, 255)


@dataclass(frozen=True)
class Training:
    steps: int
    learning_rate: float = 0.1
    is_verbose: bool = False
    name: str = "plain"
    schedule: Literal["cosine", "line"] = "cosine"
    limit: float | None = None
    depth: int | tuple[int, int] = 12
    scales: tuple[int, ...] = (8,)
    labelled: tuple[str, int] = ("a", 1)
    extra: dict | None = None
    crop: Crop = Crop()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"training.steps is {self.steps}; it needs to be 1 or more")
        if self.name == "none":
            raise ValueError("none is not a name")


def read(**values: object) -> Training:
    return section({"steps": 5, **values}, "generator.training", Training)


def message_of(values: object, name: str = "generator.training", kind: type = Training) -> str:
    with pytest.raises(ConfigError) as caught:
        section(values, name, kind)
    return str(caught.value)


def test_a_section_becomes_its_dataclass_and_keeps_the_defaults_of_what_it_leaves_out():
    assert read(learning_rate=0.2, scales=[1, 2, 4]) == Training(steps=5, learning_rate=0.2, scales=(1, 2, 4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1.0}, " has no key 'learning_rat'. Did you mean 'learning_rate'?"),
        ({"steps": 5, "crop": {"sid": 4}}, ".crop has no key 'sid'. Did you mean 'side'?"),
        ({"steps": 5, "crop": {"zzz": 1}}, ".crop has no key 'zzz'. Its keys are: side, background"),
        ({}, " lacks the key 'steps' (a whole number)"),
        ({"steps": 0}, ".steps is 0; it needs to be 1 or more"),
        *((value, f" should be a block of keys, found {value!r}") for value in (None, 3, "a", [1])),
    ],
)
def test_a_section_that_is_no_such_dataclass_is_rejected_by_its_full_path(values, message):
    assert message_of(values) == f"params.yaml: generator.training{message}"


def test_an_error_of_a_dataclass_without_a_path_is_unchanged():
    assert message_of({"steps": 5, "name": "none"}) == "params.yaml: none is not a name"


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_key_of_an_earlier_version_is_rejected_with_its_new_name(old, new):
    kind = make_dataclass("Block", [(new, int, 0), ("other", int, 0)])
    message = f"params.yaml: block has no key {old!r}. It is called {new!r} now. Rename it"
    assert message_of({old: 1}, "block", kind) == message


def test_the_message_names_another_file_if_the_values_come_from_one():
    with pytest.raises(ConfigError, match="^placement.yaml: crop.side should be a whole number, found 'x'$"):
        section({"side": "x"}, "crop", Crop, file="placement.yaml")
    with pytest.raises(ConfigError, match="^placement.yaml: the file lacks the key 'seed'$"):
        check_keys({}, "the file", ["seed"], file="placement.yaml")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("steps", "5", "should be a whole number, found '5'"),
        ("steps", 5.0, "should be a whole number, found 5.0"),
        ("steps", True, "should be a whole number, found True"),
        ("steps", None, "should be a whole number, found None"),
        ("learning_rate", True, "should be a number, found True"),
        ("learning_rate", 10**400, f"should be a number, found 1{'0' * 400}"),
        ("learning_rate", "fast", "should be a number, found 'fast'"),
        ("limit", False, "should be a number, found False"),
        ("is_verbose", 1, "should be true or false, found 1"),
        ("is_verbose", "yes", "should be true or false, found 'yes'"),
        ("name", 3, "should be text, found 3"),
        ("schedule", "cosin", "is 'cosin'; it can be: cosine, line"),
        ("depth", None, "should be a whole number or a list of 2 whole numbers, found None"),
        ("depth", "deep", "should be a whole number or a list of 2 whole numbers, found 'deep'"),
        ("scales", 8, "should be a list, found 8. Write it as [a, b]"),
        ("scales", "8", "should be a list, found '8'. Write it as [a, b]"),
        ("scales", [1, 2.5], "[1] should be a whole number, found 2.5"),
        ("labelled", ["a"], "should hold 2 values, found 1"),
        ("labelled", ["a", "b"], "[1] should be a whole number, found 'b'"),
        ("crop", 3, "should be a block of keys, found 3"),
    ],
)
def test_a_value_of_another_type_is_rejected_with_its_name(key, value, sentence):
    space = "" if sentence.startswith("[") else " "
    assert message_of({"steps": 5, key: value}) == f"params.yaml: generator.training.{key}{space}{sentence}"


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", "0.001"), ("3e8", "300000000.0"), ("1e-8", "1.0e-08"), ("1.5e-7", "1.5e-07"), ("0.5", "0.5")],
)
def test_the_error_for_a_number_that_yaml_reads_as_text_says_how_to_write_it(text, number):
    assert message_of({"steps": 5, "learning_rate": text}) == (
        f"params.yaml: generator.training.learning_rate should be a number, found {text!r} "
        f"(YAML reads that as text; write {number})"
    )
    assert yaml.safe_load(number) == float(text)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning_rate", 1, 1.0),
        ("learning_rate", 0.3, 0.3),
        ("limit", None, None),
        ("extra", None, None),
        ("depth", 3, 3),
        ("depth", [2, 3], (2, 3)),
        ("labelled", ["b", 2], ("b", 2)),
        ("crop", {"side": 4, "background": [1, 2, 3]}, Crop(4, (1, 2, 3))),
    ],
)
def test_a_value_of_the_right_type_is_accepted(key, value, expected):
    found = getattr(read(**{key: value}), key)
    assert (found, type(found)) == (expected, type(expected))


def test_a_file_must_have_exactly_the_required_sections():
    check_keys({"seed": 0, "data": {}}, "the file", ["seed", "data"])
    with pytest.raises(ConfigError, match="params.yaml: the file has no key 'sed'. Did you mean 'seed'?"):
        check_keys({"sed": 0, "data": {}}, "the file", ["seed", "data"])
    with pytest.raises(ConfigError, match="params.yaml: the file lacks the key 'data'"):
        check_keys({"seed": 0}, "the file", ["seed", "data"])
    check_keys({"seed": 0, "note": "x"}, "the file", ["seed"], optional=["note", "more"])
    with pytest.raises(ConfigError, match="the file has no key 'nota'. Did you mean 'note'?"):
        check_keys({"seed": 0, "nota": "x"}, "the file", ["seed"], optional=["note"])


@dataclass(frozen=True)
class Beside:
    share: float = 0.0


def test_a_models_block_may_have_keys_beside_its_kind_and_training():
    block = {"kind": "small", "small": {}, "training": {}}
    assert model_block(block, "model", Beside) == Beside(0.0)
    assert model_block({**block, "share": 0.5}, "model", Beside) == Beside(0.5)
    with pytest.raises(ConfigError, match="params.yaml: model has no key 'shre'. Did you mean 'share'?"):
        model_block({**block, "shre": 0.5}, "model", Beside)
    with pytest.raises(ConfigError, match="params.yaml: model lacks the key 'training'"):
        model_block({"kind": "small", "small": {}}, "model", Beside)
    with pytest.raises(ConfigError, match="params.yaml: model.share should be a number, found 'half'"):
        model_block({**block, "share": "half"}, "model", Beside)
