"""The house itself: who may import whom, what dvc.yaml says of it, and that the README's tree is the tree there is."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FAMILIES = {"tokenizers": "image_tokenizer", "generators": "generator", "scorers": "scorer"}
# They watch, lock, log and share work out; no result depends on them, so an edit of theirs reruns no stage.
WATCHERS = {
    f"stages/{name}.py"
    for name in ("_run", "_stage", "_progress", "_environment", "_launch", "_guard", "_engine", "_hand", "_ray")
}
DATA = {"numpy", "pyarrow", "PIL", "torch", "tokenizers"}
MATHS = {"torch", "numpy", "safetensors"}

ALLOWED = {  # part of the library -> the packages from outside that it may import
    "tokenizers/": {"torch"},
    "generators/": {"torch"},
    "scorers/": {"torch", "open_clip"},
    "sources/": DATA | {"fsspec"},
    **{f"{name}.py": DATA for name in ("tars", "pairs", "pair_settings", "pair_shards", "pair_writer", "pair_counts")},
    **{f"{name}.py": DATA for name in ("shards", "tables", "samples", "rows", "store")},
    **{f"{name}.py": DATA for name in ("twins", "duplicates", "mixing")},
    "provenance.py": DATA,
    **{f"{name}.py": DATA for name in ("text", "images", "thumbnails", "scenes", "scene_reader", "loader", "augmentation")},
    **{f"{name}.py": MATHS for name in ("training", "updates", "optim", "checkpoints", "metrics", "sampling", "kmeans")},
    **{f"{name}.py": MATHS for name in ("config", "errors", "files", "naming", "components", "drawing", "evaluation")},
    **{f"{name}.py": MATHS | {"torch_fidelity"} for name in ("fidelity", "features")},
    **{f"{name}.py": MATHS for name in ("likeness", "sides", "best_of", "retrieval")},
    "neighbours.py": {"torch", "faiss"},
    **{f"{name}.py": MATHS for name in ("schedules", "seeds", "scaling", "distributed", "package", "__main__", "__init__")},
    **{f"{name}.py": MATHS for name in ("plan", "completion", "likelihood", "unpickling", "torch_files", "released")},
    "workbench.py": DATA,
    "workers.py": set(),
    "compiling.py": {"torch"},
    "memory.py": set(),
    "desks.py": set(),
    "commands/": MATHS,
    "captions.py": {"py3langid"},
    "gate.py": set(),
    "plots.py": {"numpy", "matplotlib"},
    "report.py": {"jinja2"},
    "runs.py": DATA,
    "caption_counts.py": DATA,
    "comparison.py": {"jinja2"},
    "sheets.py": DATA | {"jinja2"},
    "votes.py": {"numpy"},
}


def python_files(folder: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py"))


def imported(file: str) -> set[str]:
    """Every module that a file imports, by its full name."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def own_files(file: str) -> set[str]:
    """The files of this project that a file imports."""
    found = set()
    for name in imported(file):
        if name.partition(".")[0] in ("thousandwords", "stages"):
            base = Path(*name.split("."))
            found |= {str(path) for path in (base.with_suffix(".py"), base / "__init__.py") if (ROOT / path).is_file()}
    return found


def outside(file: str) -> set[str]:
    """The packages from outside, the standard library apart, that a file imports."""
    tops = {name.partition(".")[0] for name in imported(file)}
    return tops - set(sys.stdlib_module_names) - {"thousandwords", "stages", "flows", "studio", "tests", "__future__"}


def closure(file: str) -> set[str]:
    """A file and all that it imports, directly or not; the watchers and what only they need are left out."""
    found, open_files = set(), [file]
    while open_files:
        one = open_files.pop()
        if one not in found and one not in WATCHERS:
            found.add(one)
            open_files += own_files(one)
    return found - {"stages/__init__.py", "thousandwords/__init__.py"}


def allowed(file: str) -> set[str]:
    inside = file.removeprefix("thousandwords/")
    for part, packages in ALLOWED.items():
        if inside == part or (part.endswith("/") and inside.startswith(part)):
            return packages
    pytest.fail(f"{file} is new: say in tests/test_house.py what it may import")


@pytest.mark.parametrize("file", python_files("thousandwords"))
def test_the_library_imports_what_its_part_may_and_no_more(file):
    assert outside(file) <= allowed(file)


def test_the_commands_load_nothing_that_a_bare_library_comes_without():
    asked = "import sys, thousandwords.__main__; print({'jinja2', 'matplotlib', 'torch_fidelity'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("file", [file for family in FAMILIES for file in python_files(f"thousandwords/{family}")])
def test_a_model_imports_its_own_folder_and_pure_helpers_only(file):
    family = Path(file).parts[1]
    helpers = ("images", "sampling", "schedules", "scaling", "kmeans", "errors", "compiling", "memory")
    pure = {f"thousandwords/{name}.py" for name in helpers}
    others = {other for other in own_files(file) if not other.startswith(f"thousandwords/{family}/")}
    assert others <= pure | {"thousandwords/__init__.py"}


def test_components_alone_reaches_the_families():
    reachers = {
        file
        for file in [*python_files("thousandwords"), *python_files("stages"), *python_files("flows")]
        if any(re.match(rf"thousandwords/({'|'.join(FAMILIES)})/", other) for other in own_files(file))
        and not re.match(rf"thousandwords/({'|'.join(FAMILIES)})/", file)
    }
    assert reachers == set(), "reach them through components.component(family, kind)"


def test_only_run_imports_mlflow_and_nothing_of_the_stages_imports_prefect():
    assert {file for file in python_files("stages") if "mlflow" in outside(file)} == {"stages/_run.py"}
    assert not [file for file in python_files("stages") if {"prefect", "dvc"} & outside(file)]


def test_stages_open_pairs_by_the_one_door_that_keeps_memory_bounded():
    calls = {file: re.findall(r"(?<!def )\bPairReader\(", (ROOT / file).read_text()) for file in python_files("stages")}
    assert {file for file, found in calls.items() if found} == {"stages/_pairs.py"}


def test_ray_is_imported_by_one_module_that_nobody_imports_unasked():
    assert {file for file in python_files("stages") if "ray" in outside(file)} == {"stages/_ray.py"}
    heads = [line for file in python_files("stages") for line in (ROOT / file).read_text().splitlines()]
    assert not [line for line in heads if re.match(r"(from|import) .*\b_ray\b", line)]


def test_flows_never_touch_tensors():
    assert not [file for file in python_files("flows") if {"torch", "pyarrow", "numpy"} & outside(file)]


def test_nothing_but_the_studio_and_tests_imports_stages_or_flows():
    for file in python_files("thousandwords"):
        assert not {name for name in imported(file) if name.partition(".")[0] in ("stages", "flows", "studio")}, file
    for file in [*python_files("stages"), *python_files("flows")]:
        assert not {name for name in imported(file) if name.partition(".")[0] == "studio"}, file


def test_the_studio_reaches_the_registry_by_one_door_and_tools_of_the_pipeline_not_at_all():
    files = python_files("studio")
    reached = {file: {name for name in imported(file) if name.partition(".")[0] in ("stages", "flows")} for file in files}
    assert {file for file, names in reached.items() if names} == {"studio/versions.py", "studio/__main__.py"}
    assert reached["studio/__main__.py"] == {"stages._environment"}  # no telemetry, before anything else is imported
    assert not [file for file in files if {"mlflow", "prefect", "dvc"} & outside(file)]


def test_no_request_to_the_studio_touches_a_tensor_in_its_server():
    for name in ("app", "routes", "schema", "streaming", "refusals", "doors", "connections", "courier", "versions"):
        assert "torch" not in outside(f"studio/{name}.py"), name


def dvc_stages() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


COMMANDS = {"plan"}  # modules of stages/ that a user calls by name, though nothing is made by them


def test_each_stage_is_one_module_and_says_what_it_does():
    modules = {Path(file).stem for file in python_files("stages") if not Path(file).name.startswith("_")} - COMMANDS
    assert modules == set(dvc_stages())
    for name, stage in dvc_stages().items():
        assert f"python -m stages.{name} " in stage["cmd"] and len(stage["desc"]) > 20


def families_of(stage: str) -> set[str]:
    """The families whose models a stage builds or loads, read from the words it hands to `components`."""
    text = "".join((ROOT / file).read_text() for file in closure(f"stages/{stage}.py") if not file.endswith("components.py"))
    return {family for family in FAMILIES if f'"{family}"' in text}


@pytest.mark.parametrize("stage", sorted(dvc_stages()))
def test_dvc_knows_every_file_that_a_stage_imports(stage):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    wanted = closure(f"stages/{stage}.py")
    for family in families_of(stage):
        wanted |= closure(f"thousandwords/{family}/{params[FAMILIES[family]]['kind']}.py")
    if "thousandwords/report.py" in wanted:
        wanted.add("thousandwords/report.html.j2")
    listed = set()
    for dep in dvc_stages()[stage]["deps"]:
        for section in FAMILIES.values():
            dep = dep.replace(f"${{{section}.kind}}", params[section]["kind"])
        if dep.startswith(("thousandwords/", "stages/")):
            listed.add(dep)
    assert listed == wanted


def test_every_params_section_is_somebodys_dependency():
    from stages.check_params import OPTIONAL

    used = {name for stage in dvc_stages().values() for name in stage.get("params", [])}
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) <= used | set(OPTIONAL)


def test_presets_are_whole_alternatives_that_pass_the_check():
    from stages.check_params import OPTIONAL, SECTIONS, check_params

    for path in sorted((ROOT / "presets").glob("*.yaml")):
        params = yaml.safe_load(path.read_text())
        assert tuple(params)[: len(SECTIONS)] == SECTIONS and set(params) <= {*SECTIONS, *OPTIONAL}, path.name
        params["data"].update(source="scenes")  # the pictures themselves may not be on this machine
        check_params(params, params["seed"])


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_readme_tree_names_every_file_of_the_library_the_stages_and_the_flows():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in tracked():
        if name.endswith(".py") and name.startswith(("thousandwords/", "stages/", "flows/", "studio/")):
            shown = f"{Path(name).parts[1]}/" if name.count("/") > 1 else Path(name).name
            assert shown in readme or name.endswith("__init__.py"), f"README.md does not name {name}"


FORBIDDEN = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen",
             "pandas.read_pickle"}  # fmt: skip


def runs_code(source: str) -> list[str]:
    """The calls in a source that could run what a file holds, or hand a line to a shell."""
    tree = ast.parse(source)
    known = {}  # a name in this file -> what it is in full
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    calls = [(call, ast.unparse(call.func)) for call in ast.walk(tree) if isinstance(call, ast.Call)]
    named = [(call, ".".join([known.get(first, first), *rest])) for call, name in calls for first, *rest in [name.split(".")]]
    return [name for call, name in named if is_forbidden(call, name)]


def is_forbidden(call: ast.Call, name: str) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return (
        name in FORBIDDEN
        or (name == "torch.load" and given.get("weights_only") != "True")
        or (name.startswith("mlflow.") and "load_model" in name)
        or (name.startswith("numpy.load") and given.get("allow_pickle") == "True")
        or name.endswith(".extractall")
        or given.get("shell", "False") != "False"
    )


def test_no_loader_that_runs_code_and_no_shell_stands_in_the_project():
    found = {name: runs_code((ROOT / name).read_text(encoding="utf-8")) for name in tracked() if name.endswith(".py")}
    assert {name: calls for name, calls in found.items() if calls and not name.startswith("tests/")} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import mlflow\nmlflow.pyfunc.load_model('models:/x@champion')",
        "import mlflow.pyfunc as served\nserved.load_model(place)",
        "from mlflow.pytorch import load_model as get\nget(place)",
        "from mlflow import pyfunc\npyfunc.load_model(place)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_each_way_of_running_what_a_file_holds_is_seen(source):
    assert len(runs_code(source)) == 1


def test_what_reads_without_running_is_let_be():
    assert not runs_code("import torch, yaml\ntorch.load(path, weights_only=True)\nyaml.safe_load(text)\nmodel.eval()")


PICKLES = {"pickle", "_pickle", "cPickle", "pickletools", "shelve", "dill", "cloudpickle", "joblib", "marshal"}


def taken_from_pickle(file: str) -> set[str]:
    """What a file takes from a reader of pickles: {"pickle.UnpicklingError"}; "pickle" where it is more than one can tell."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    used = {name for name in imported(file) if name.partition(".")[0] in PICKLES}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    plain = {node.value: f"{node.value.id}.{node.attr}" for node in attributes if isinstance(node.value, ast.Name)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in PICKLES]
    return {plain.get(node, node.id) for node in names} | {name for name in used if "." in name} or used


def test_nothing_imports_a_reader_of_pickles():
    """The released weights are read by `thousandwords/unpickling.py`, which is a reader of its own and runs nothing."""
    takers = {name: taken_from_pickle(name) for name in tracked() if name.endswith(".py") and not name.startswith("tests/")}
    assert {name: taken for name, taken in takers.items() if taken} == {
        "thousandwords/scorers/_open_clip.py": {"pickle.UnpicklingError"},  # what torch's reader of plain weights raises
        "thousandwords/features.py": {"pickle.UnpicklingError"},
    }


def test_the_lock_pins_every_package_with_hashes_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, flags=re.MULTILINE))
    assert "://" not in lock and "--index" not in lock
    assert lock.count("--hash=sha256:") >= len(pins) > 200
    wanted = {"torch": "2.15.0", "torchvision": "0.29.2", "prefect": "3.8.8", "mlflow": "3.17.2", "dvc": "3.67.1"}
    assert {name: pins[name] for name in wanted} == wanted
    assert pins["fastapi"] < "0.151" and pins["sqlalchemy"].startswith("2.0.")
