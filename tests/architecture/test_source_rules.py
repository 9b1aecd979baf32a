"""What no source may do: run what a file holds, hand a line to a shell, read pickles; and what the lock file pins."""

import ast
import functools
import re

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tracked_files import tracked

FORBIDDEN = {
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen",
    "pandas.read_pickle",
}  # fmt: skip
PICKLE_MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "shelve", "dill", "cloudpickle", "joblib", "marshal",
}  # fmt: skip
PINNED = {"torch": "2.15.0", "torchvision": "0.29.2", "prefect": "3.8.8", "mlflow": "3.17.2", "dvc": "3.67.1"}


@functools.lru_cache
def sources() -> dict[str, ast.Module]:
    """Every Python file that users run, parsed."""
    names = [name for name in tracked("*.py") if not name.startswith("tests/")]
    return {name: ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in names}


def dangerous_calls(tree: ast.Module) -> list[str]:
    """The calls that could run what a file holds, or hand a line to a shell, by their full names."""
    full_names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full_names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            full_names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    calls = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            first, *rest = dotted_name(call.func)
            name = ".".join([full_names.get(first, first), *rest])
            calls += [name] if is_dangerous(call, name) else []
    return calls


def dotted_name(function: ast.expr) -> list[str]:
    """a.b.c -> ["a", "b", "c"]; ast.unparse is slow, so only what is no name is unparsed."""
    names = []
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    return [function.id if isinstance(function, ast.Name) else ast.unparse(function), *reversed(names)]


def is_dangerous(call: ast.Call, name: str) -> bool:
    read = ("weights_only", "allow_pickle", "shell")
    keywords = {each.arg: ast.unparse(each.value) for each in call.keywords if each.arg in read}
    return (
        name in FORBIDDEN
        or (name == "torch.load" and keywords.get("weights_only") != "True")
        or (name.startswith("mlflow.") and "load_model" in name)
        or (name.startswith("numpy.load") and keywords.get("allow_pickle") == "True")
        or name.endswith(".extractall")
        or keywords.get("shell", "False") != "False"
    )


def uses_of_pickle(tree: ast.Module) -> set[str]:
    """What a file takes from a pickle module: {"pickle.UnpicklingError"}; the module's name where nothing more is known."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    imported = {name for name in imported if name.partition(".")[0] in PICKLE_MODULES}
    attributes = {
        node.value: f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in PICKLE_MODULES]
    uses = {attributes.get(node, node.id) for node in names} | {name for name in imported if "." in name}
    return uses or imported


def test_no_source_runs_what_a_file_holds_or_starts_a_shell():
    found = {name: dangerous_calls(tree) for name, tree in sources().items()}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import mlflow\nmlflow.pyfunc.load_model('models:/x@champion')", 1),
        ("import mlflow.pyfunc as served\nserved.load_model(place)", 1),
        ("from mlflow.pytorch import load_model as get\nget(place)", 1),
        ("import torch\ntorch.load(path)\ntorch.load(path, weights_only=False)", 2),
        ("from torch import load\nload(path)", 1),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", 1),
        ("archive.extractall(folder)", 1),
        ("import subprocess\nsubprocess.run(line, shell=True)", 1),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", 1),
        ("eval(text)", 1),
        ("import torch, yaml\ntorch.load(path, weights_only=True)\nyaml.safe_load(text)\nmodel.eval()", 0),
    ],
)
def test_each_dangerous_call_is_found_and_no_other(source, count):
    assert len(dangerous_calls(ast.parse(source))) == count


def test_nothing_reads_pickles_but_the_reader_that_runs_nothing():
    """Only safe_pickle.py reads pickles, by the standard library's machine without its imports and calls."""
    found = {name: uses_of_pickle(tree) for name, tree in sources().items()}
    reader = found.pop("thousandwords/pretrained/safe_pickle.py")
    steps = {f"pickle.{step}" for step in ("REDUCE", "NEWOBJ", "BUILD", "SETITEM", "SETITEMS")}
    assert reader == {"pickle", "pickle._Unpickler"} | steps  # `pickle`: the codes of the operations, by name
    assert {name: uses for name, uses in found.items() if uses} == {
        # what torch's reader of plain weights raises
        "thousandwords/scorers/clip/open_clip_backend.py": {"pickle.UnpicklingError"}
    }


def test_stages_open_pairs_by_the_function_that_bounds_memory():
    for name, tree in sources().items():
        if name.startswith("stages/"):
            calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
            assert "PairReader" not in calls, f"{name}: use data.pair_shards.open_pairs"


def test_the_lock_pins_every_package_with_hashes_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, flags=re.MULTILINE))
    assert "://" not in lock and "--index" not in lock
    assert lock.count("--hash=sha256:") >= len(pins) > 200
    assert {name: pins[name] for name in PINNED} == PINNED
    assert pins["fastapi"] < "0.151" and pins["sqlalchemy"].startswith("2.0.")


def test_random_numbers_are_made_on_the_device_of_their_generator():
    """torch makes them on the CPU by default, and refuses a generator of another device: an error that no machine
    without a GPU shows."""
    names = ("rand", "randn", "randint", "randperm", "normal", "empty")
    found = [
        f"{name}:{call.lineno}"
        for name, tree in sources().items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and dotted_name(call.func) in [["torch", each] for each in names]
        if {"generator"} == {keyword.arg for keyword in call.keywords} & {"generator", "device"}
        if not name.startswith("bench/")
    ]
    assert found == []
