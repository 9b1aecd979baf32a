"""Who may import whom: the contracts in pyproject.toml hold, no file imports in a circle, and packages load nothing by themselves."""

import ast
import graphlib
import logging.config
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.helpers.paths import ROOT
from tests.helpers.tracked_files import tracked
from thousandwords.__main__ import COMMANDS

PACKAGES = ("thousandwords", "stages", "scripts", "flows", "studio")
# these set or list something when they are imported; every other __init__.py is a docstring
INIT_WITH_CODE = {
    "flows/__init__.py", "stages/__init__.py", "thousandwords/__init__.py", "thousandwords/ingest/sources/__init__.py",
}  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, "bench", cache_dir=None)


def test_the_contracts_of_import_linter_hold(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    # it disables the loggers of other tests
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_file_imports_itself_alone_or_by_way_of_others(graph):
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the files


def test_an_init_file_is_a_docstring_so_that_a_module_can_be_imported_alone():
    for name in tracked("*/__init__.py"):
        if name.startswith(PACKAGES) and name not in INIT_WITH_CODE:
            body = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
            assert all(isinstance(node, ast.Expr) for node in body), f"{name} holds code"


def test_no_python_file_is_ignored_by_git_or_dvc():
    names = tracked("*.py")
    for ignored_by in (["git", "check-ignore", "--no-index"], [sys.executable, "-m", "dvc", "check-ignore"]):
        found = subprocess.run([*ignored_by, *names], cwd=ROOT, capture_output=True, text=True)
        assert found.stdout == "" and found.returncode == 1, found.stdout + found.stderr


def test_the_largest_folder_of_a_package_has_few_modules():
    folders: dict[Path, int] = {}
    for name in tracked("*.py"):
        if name.startswith(PACKAGES) and not name.endswith("__init__.py"):
            folders[Path(name).parent] = folders.get(Path(name).parent, 0) + 1
    assert max(folders.values()) <= 20, folders


def test_the_commands_load_nothing_that_a_bare_library_comes_without():
    modules = ", ".join(f"thousandwords.cli.{module}" for module, *_ in COMMANDS.values())
    code = f"import sys, {modules}; print({{'jinja2', 'matplotlib', 'torch_fidelity'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_ray_is_imported_late():
    for name in tracked("*.py"):
        source = (ROOT / name).read_text(encoding="utf-8")
        if "ray_workers" in source and not name.startswith("tests/"):
            imports = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not any("ray_workers" in ast.unparse(node) for node in imports), name
