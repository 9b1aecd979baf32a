"""What MLflow needs to load a version without a clone: `mlflow.pyfunc.load_model("models:/thousandwords@champion")`.

The library's code (thousandwords/*.py) and the packages that it needs, with their versions. MLflow runs that code; this
project's own commands do not fetch it.
"""

import importlib.metadata
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

import mlflow

import thousandwords

LIBRARY = Path(thousandwords.__file__).parent


def write_pyfunc_model(folder: Path) -> None:
    """Write MLmodel, the environment and the library's code to an empty folder; the package is to be copied there."""
    with tempfile.TemporaryDirectory() as temporary:
        code = shutil.copytree(LIBRARY, Path(temporary) / LIBRARY.name, ignore=_ignored)
        mlflow.pyfunc.save_model(
            folder,
            loader_module="thousandwords.mlflow_model",
            code_paths=[str(code)],
            pip_requirements=requirements(),
        )


def requirements() -> list[str]:
    """The dependencies of the library by pyproject.toml, each with the version that is installed here."""
    project = tomllib.loads((LIBRARY.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]]
    # a wheel for CPU only has a version like 2.11.0+cpu, which not every registry has
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def _ignored(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".py") and not Path(folder, name).is_dir()]
