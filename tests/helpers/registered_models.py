"""Two versions in a registry, one champion after the other, and versions that somebody planted beside them."""
from __future__ import annotations

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

from flows import registry
from flows._champions import AFTER, CHAMPIONS, LOG
from flows._versions import NAME, newest_first
from tests.registering import PROMPT, new_project, train
from thousandwords.files import write_json, write_manifest
from thousandwords.package import load_package

ROOT = Path(__file__).parent.parent


def two_champions(folder: Path) -> Path:
    """A project with two versions, both registered and promoted, in the registry that MLFLOW_TRACKING_URI names, or its own."""
    root = new_project(folder)
    assert registry.register(root) == registry.promote(root) == "1"
    train(root, seed=1)
    assert registry.register(root) == registry.promote(root) == "2"
    return root


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_URI"])


def champion() -> str:
    return str(client().get_model_version_by_alias(NAME, "champion").version)


def pictures(package: Path) -> list[bytes]:
    return [one.picture.tobytes() for one in load_package(package).draw(PROMPT, candidates=3, seed=5)]


def run_rollback(root: Path) -> tuple[float, float, str]:
    """`python -m flows.registry rollback` as one types it: (seconds of the processor, seconds by the clock, what it says)."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "flows.registry", "rollback"], cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, time.monotonic() - began, done.stdout + done.stderr


def register_with(root: Path, seed: int, psnr: float) -> str:
    """Another version, whose reconstruction is that good; by its number."""
    train(root, seed=seed, reconstruction={"psnr_hard": psnr})
    return registry.register(root)


def check_moves(margin: float = 0.3) -> list[list[str]]:
    """What each move that counts left as the history, in their order; every one passed the gate beside the one before it."""
    found, last, history = [], "0", []
    for one in reversed(newest_first(client(), LOG)):
        if one.tags[AFTER] != last:
            continue  # decided on what was no longer so
        last, after = str(one.version), json.loads(one.tags[CHAMPIONS])
        is_rollback = after == history[:-1] and after
        is_promotion = after[:-1] == history and (not history or psnr_of(after[-1]) >= psnr_of(history[-1]) - margin)
        assert is_rollback or is_promotion, (history, after)
        history = after
        found.append(after)
    assert champion() == history[-1]
    return found


def psnr_of(version: str) -> float:
    return json.loads(client().get_model_version(NAME, version).tags["evidence"])["metrics"]["reconstruction.psnr_hard"]


def plant(folder: Path, change, pins: dict[str, str] | None = None) -> Path:
    """Version 3: a copy of version 1 with `change` made to its files, under the tags of version 1 or `pins` instead."""
    first = client().get_model_version(NAME, "1")
    planted = folder / "planted"
    shutil.copytree(local_file_uri_to_path(first.source), planted)
    change(planted)
    client().create_model_version(NAME, planted.as_uri(), tags={**first.tags, **(pins or {})})
    return planted


def sealed(folder: Path) -> dict[str, str]:
    """Makes every manifest in `folder` agree with what lies there; returns the tags that pin it: nothing is left to a hash."""
    package = folder / "artifacts/package"
    parts = {}
    for part in sorted(path for path in package.iterdir() if path.is_dir()):
        names = [path.name for path in part.iterdir() if path.name != "manifest.json"]
        parts[part.name] = write_manifest(part, dict.fromkeys(names), {})["sha256"]
    facts = json.loads((package / "package.json").read_bytes())
    write_json(package / "package.json", {**facts, "parts": parts})
    write_manifest(package, {"package.json": None}, {"parts": parts})
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    outside = ["../outside.json"] if (folder.parent / "outside.json").exists() else []
    named = [name for name in files if name != "manifest.json"] + outside
    return {"files.sha256": write_manifest(folder, dict.fromkeys(named), {})["sha256"]}
