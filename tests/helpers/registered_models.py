"""Two versions in a registry, one champion after the other, and forged versions beside them."""

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
from mlflow.utils.file_utils import local_file_uri_to_path

from flows.registry.commands import promote, register
from flows.registry.versions import NAME, read_champions
from tests.helpers.paths import ROOT
from tests.helpers.registering import PROMPT, new_project, train
from thousandwords.core.files import write_json
from thousandwords.core.manifest import write_manifest
from thousandwords.inference.package import load_package


def two_champions(folder: Path) -> Path:
    """A project with two promoted versions in the registry of MLFLOW_TRACKING_URI, or in its own."""
    root = new_project(folder)
    assert register(root) == promote(root) == "1"
    train(root, seed=1)
    assert register(root) == promote(root) == "2"
    return root


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_URI"])


def champion() -> str:
    return str(client().get_model_version_by_alias(NAME, "champion").version)


def package_images(package: Path) -> list[bytes]:
    candidates = load_package(package).generate(PROMPT, candidates=3, seed=5)
    return [candidate.image.tobytes() for candidate in candidates]


def run_rollback(root: Path) -> tuple[float, float, str]:
    """Run `python -m flows.registry rollback`: (CPU seconds, wall seconds, output)."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command, own = (
        [sys.executable, "-m", "flows.registry", "rollback"],
        {**os.environ, "PYTHONPATH": str(ROOT)},
    )
    result = subprocess.run(command, cwd=root, env=own, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, time.monotonic() - began, result.stdout + result.stderr


def register_with(root: Path, seed: int, psnr: float) -> str:
    """Register another version with that PSNR; its number."""
    train(root, seed=seed, reconstruction={"psnr_hard": psnr})
    return register(root)


def check_champions(margin: float = 0.3) -> tuple[str, ...]:
    """The champions, after a check that each passed the gate against the one before it."""
    champions = read_champions(client())
    for before, after in itertools.pairwise(champions):
        assert psnr_of(after) >= psnr_of(before) - margin, champions
    assert champion() == champions[-1]
    return champions


def psnr_of(version: str) -> float:
    source = client().get_model_version(NAME, version).source
    evidence = json.loads((Path(local_file_uri_to_path(source)) / "evidence.json").read_bytes())
    return evidence["metrics"]["reconstruction.psnr_hard"]


def plant(folder: Path, change, pins: dict[str, str] | None = None) -> Path:
    """Create version 3: a copy of version 1 changed by `change`, with the tags of version 1, or `pins`."""
    first = client().get_model_version(NAME, "1")
    planted = folder / "planted"
    shutil.copytree(local_file_uri_to_path(first.source), planted)
    change(planted)
    client().create_model_version(NAME, planted.as_uri(), tags={**first.tags, **(pins or {})})
    return planted


def seal(folder: Path) -> dict[str, str]:
    """Make every manifest in `folder` match its files; the tags that pin it, so that no hash reveals a change."""
    package = folder / "artifacts/package"
    parts = {}
    for part in sorted(path for path in package.iterdir() if path.is_dir()):
        names = [path.name for path in part.iterdir() if path.name != "manifest.json"]
        parts[part.name] = write_manifest(part, dict.fromkeys(names), {})["sha256"]
    metadata = json.loads((package / "package.json").read_bytes())
    write_json(package / "package.json", {**metadata, "parts": parts})
    write_manifest(package, {"package.json": None}, {"parts": parts})
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    outside = ["../outside.json"] if (folder.parent / "outside.json").exists() else []
    names = [name for name in files if name != "manifest.json"] + outside
    return {"files.sha256": write_manifest(folder, dict.fromkeys(names), {})["sha256"]}
