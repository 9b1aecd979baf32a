"""A project of its own with the smoke preset, and `dvc repro` in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.helpers.paths import ROOT
from thousandwords.planning.presets import preset_text

PARTS = ("thousandwords", "stages", "flows", "presets", "data/own", "data/inpaint")
FILES = ("dvc.yaml", ".dvcignore", ".gitignore", "Makefile")


def command(project: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    """Run a command in the project, with the environment active."""
    return subprocess.run(
        words, cwd=project, env=environment(**more), capture_output=True, text=True, timeout=600
    )


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    quiet = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **quiet, **more}


def new_project(folder: Path) -> Path:
    """A copy of what git tracks, with a repository of its own and the smoke preset in use."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copy(ROOT / ".dvc" / ".gitignore", folder / ".dvc" / ".gitignore")
    (folder / "params.yaml").write_text(preset_text("smoke", ROOT / "presets"))
    command(folder, "git", "init", "-q")
    return folder


def repro(project: Path, *words: str, **more: str) -> str:
    done = command(project, "dvc", "repro", *words, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    """The stages that DVC says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def change(project: Path, path: str, value: object) -> None:
    """Sets one setting of params.yaml: change(project, "sampling.candidates", 5)"""
    params = yaml.safe_load((project / "params.yaml").read_text())
    set_value(params, path, value)
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def set_value(params: dict, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        params = params.setdefault(name, {})
    params[last] = value
