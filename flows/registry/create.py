"""Puts a new version together: its files, what pins them, its card; all stored before the version appears."""
from __future__ import annotations

import contextlib
import importlib.metadata
import json
import tempfile
import tomllib
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from flows._contents import SERVED, check_names
from flows._data_card import data_card
from flows._evidence import PACKAGE, PAIRS, licences, sound_manifest
from flows._model_card import model_card
from flows._stored import check_stored
from flows._versions import EVIDENCE, NAME, PINNED, SAME_AS, number_of
from stages._run import experiment_of
from thousandwords.files import DamagedArtefact, failpoint, read_manifest, write_bytes, write_manifest
from thousandwords.gate import PARTS

HERE = Path(__file__).parent


def add_version(client: mlflow.MlflowClient, root: Path, known: dict, digest: str) -> str:
    """Uploads everything to a run of its own, then lets the version appear; returns its number."""
    run = client.create_run(experiment_of(client, root), tags={"mlflow.runName": "register", "stage": "register"})
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as folder:
            tags = _write_version(root, Path(folder) / "model", known)
            source = _store(client, run, Path(folder) / "model")
        version = _create(client, run.info.run_id, source, {**tags, SAME_AS: digest})
        status = "FINISHED"
        return version
    finally:
        client.set_terminated(run.info.run_id, status)


def _write_version(root: Path, folder: Path, known: dict) -> dict[str, str]:
    """Everything of a version under `folder`, with a manifest; returns its tags."""
    import mlflow.pyfunc  # late: it takes a second, and only this needs it

    mlflow.pyfunc.save_model(
        folder,
        python_model=str(HERE / SERVED),
        artifacts={"package": str(root / PACKAGE)},
        pip_requirements=requirements(),
    )
    card = model_card(NAME, known, {name: _header(root / PACKAGE / name) for name in PARTS})
    write_bytes(folder / "model_card.md", card.encode())
    write_bytes(folder / "data_card.md", data_card(NAME, *_data(root / PAIRS)).encode())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = write_manifest(folder, dict.fromkeys(names), {"package": known["package"]})
    check_names(manifest["files"], "this version")
    return _tags(known, manifest["sha256"])


def _data(pairs: Path) -> tuple[dict | None, dict | None]:
    """What the data card is made from; a shard that is damaged has no captions to count, and `make verify` names it."""
    from thousandwords.caption_counts import caption_counts  # late: it loads what reads shards

    manifest = sound_manifest(pairs)
    with contextlib.suppress(DamagedArtefact):
        return manifest, caption_counts(pairs)
    return manifest, None


def _tags(known: dict, pinned: str) -> dict[str, str]:
    """What pins the files, all that is known, and what one would look for in MLflow's pages."""
    return {
        PINNED: pinned,
        EVIDENCE: json.dumps(known, sort_keys=True, ensure_ascii=False),
        "package.sha256": known["package"],
        "git.commit": known["git"].get("commit", "none"),
        "git.is_dirty": str(known["git"].get("is_dirty", "unknown")).lower(),
        "dvc.lock.sha256": known["lock"] or "none",
        "data.licence": licences(known),
        **{f"run.{stage}": run_id for stage, run_id in known["runs"].items()},
    }


def requirements() -> list[str]:
    """What a server needs to draw, pinned to what is installed here: the library's own dependencies, and no more."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [line.partition(">")[0].partition("=")[0].strip() for line in project["dependencies"]]
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _header(part: Path) -> dict:
    """A part's config.json; the text tokenizer's holds settings alone."""
    header = json.loads((part / "config.json").read_bytes())
    return header if "kind" in header else {"kind": "byte-level BPE", "config": header}


def _store(client: mlflow.MlflowClient, run: mlflow.entities.Run, folder: Path) -> str:
    """Uploads the folder to the run, and looks whether all of it has arrived; returns where it lies."""
    client.log_artifacts(run.info.run_id, str(folder), "model")
    failpoint("version-stored")
    source = f"{run.info.artifact_uri}/model"
    check_stored(source, read_manifest(folder, verify=False), "the new version")
    return source


def _create(client: mlflow.MlflowClient, run_id: str, source: str, tags: dict[str, str]) -> str:
    with contextlib.suppress(MlflowException):  # it is there already; if not, the next call says why
        client.create_registered_model(NAME, description="captions in, ranked pictures out")
    version = client.create_model_version(NAME, source, run_id, tags=tags)
    failpoint("version-created")
    return number_of(version)
