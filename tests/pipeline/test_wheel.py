"""The library as a wheel: what it holds and weighs, and that it is imported from anywhere without torch."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.paths import ROOT
from thousandwords import __version__

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
IMPORT = """
import sys, time
sys.path.insert(0, sys.argv[1])
start = time.perf_counter()
import thousandwords
seconds = time.perf_counter() - start
import thousandwords.__main__  # its --version and --help take no longer
print(thousandwords.__version__, "torch" in sys.modules, "numpy" in sys.modules, seconds < 0.3)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools writes into the folder that it builds from."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("thousandwords", "tests", "flows"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_library_and_its_example_and_is_small(wheel):
    assert wheel.name == f"thousandwords-{__version__}-py3-none-any.whl"
    entries = zipfile.ZipFile(wheel).infolist()
    names, example = [entry.filename for entry in entries], "thousandwords/example/"
    assert sum(each.compress_size for each in entries if not each.filename.startswith(example)) < 1_000_000
    assert {name.partition("/")[0] for name in names} == {
        "thousandwords", f"thousandwords-{__version__}.dist-info"
    }  # fmt: skip
    packaged = {name for name in names if name.startswith("thousandwords/")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "thousandwords").rglob("*.py")}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "thousandwords").rglob("*.j2")}
    model = {path.relative_to(ROOT).as_posix() for path in (ROOT / example).rglob("*") if path.is_file()}
    assert packaged == sources | templates | model | {"thousandwords/py.typed"}


def test_the_wheel_is_imported_in_another_folder_at_once_and_without_torch(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-I", "-c", IMPORT, tmp_path / "site"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == [__version__, "False", "False", "True"], done.stderr
    (scripts,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert scripts.read_text() == "[console_scripts]\nthousandwords = thousandwords.__main__:main\n"
