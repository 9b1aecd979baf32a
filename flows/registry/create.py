"""Create a new version: its files, the tags that pin them, its cards.

All stored before the version appears.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import tempfile
import tomllib
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from flows.registry.data_card import data_card
from flows.registry.evidence import PACKAGE, PAIRS, licences, sound_manifest
from flows.registry.model_card import model_card
from flows.registry.validation import SERVED, check_names
from flows.registry.version_files import check_stored
from flows.registry.versions import EVIDENCE, NAME, PINNED, SAME_AS, number_of
from stages.runtime.tracking import experiment_of
from thousandwords.core.files import failpoint, write_bytes
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest
from thousandwords.evaluation.gate import PARTS

HERE = Path(__file__).parent


def add_version(client: mlflow.MlflowClient, root: Path, evidence: dict, digest: str) -> str:
    """Upload everything to a new MLflow run, then create the version; returns its number."""
    run = client.create_run(
        experiment_of(client, root), tags={"mlflow.runName": "register", "stage": "register"}
    )
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as folder:
            tags = _write_version(root, Path(folder) / "model", evidence)
            source = _store(client, run, Path(folder) / "model")
        version = _create(client, run.info.run_id, source, {**tags, SAME_AS: digest})
        status = "FINISHED"
        return version
    finally:
        client.set_terminated(run.info.run_id, status)


def _write_version(root: Path, folder: Path, evidence: dict) -> dict[str, str]:
    """Write all files of a version to `folder`, with a manifest; returns its tags."""
    import mlflow.pyfunc  # late: it takes a second, and only this needs it

    # earlier versions have this name, too
    code = shutil.copy(HERE / "served_model.py", folder.with_name(SERVED))
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(code),
        artifacts={"package": str(root / PACKAGE)},
        pip_requirements=requirements(),
    )
    card = model_card(NAME, evidence, {name: _header(root / PACKAGE / name) for name in PARTS})
    write_bytes(folder / "model_card.md", card.encode())
    write_bytes(folder / "data_card.md", data_card(NAME, *_data(root / PAIRS)).encode())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = write_manifest(folder, dict.fromkeys(names), {"package": evidence["package"]})
    check_names(manifest["files"], "this version")
    return _tags(evidence, manifest["sha256"])


def _data(pairs: Path) -> tuple[dict | None, dict | None]:
    """The input of the data card; captions of a damaged shard are not counted, and `make verify` names it."""
    from thousandwords.data.pair_shards import caption_counts  # late: it loads the shard readers

    manifest = sound_manifest(pairs)
    with contextlib.suppress(DamagedArtefact):
        return manifest, caption_counts(pairs)
    return manifest, None


def _tags(evidence: dict, sha256: str) -> dict[str, str]:
    """The hash that pins the files, all evidence, and what a user searches for in MLflow's pages."""
    return {
        PINNED: sha256,
        EVIDENCE: json.dumps(evidence, sort_keys=True, ensure_ascii=False),
        "package.sha256": evidence["package"],
        "git.commit": evidence["git"].get("commit", "none"),
        "git.is_dirty": str(evidence["git"].get("is_dirty", "unevidence")).lower(),
        "dvc.lock.sha256": evidence["lock"] or "none",
        "data.licence": licences(evidence),
        **{f"run.{stage}": run_id for stage, run_id in evidence["runs"].items()},
    }


def requirements() -> list[str]:
    """The library's own dependencies, pinned to the versions installed here: all that a server needs."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [line.partition(">")[0].partition("=")[0].strip() for line in project["dependencies"]]
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _header(part: Path) -> dict:
    """A part's config.json; the text tokenizer's holds settings only."""
    header = json.loads((part / "config.json").read_bytes())
    return header if "kind" in header else {"kind": "byte-level BPE", "config": header}


def _store(client: mlflow.MlflowClient, run: mlflow.entities.Run, folder: Path) -> str:
    """Upload the folder to the run and check that all of it has arrived; returns its address."""
    client.log_artifacts(run.info.run_id, str(folder), "model")
    failpoint("version-stored")
    source = f"{run.info.artifact_uri}/model"
    check_stored(source, read_manifest(folder, verify=False), "the new version")
    return source


def _create(client: mlflow.MlflowClient, run_id: str, source: str, tags: dict[str, str]) -> str:
    with contextlib.suppress(MlflowException):  # it exists already; if not, the next call says why
        client.create_registered_model(NAME, description="captions in, ranked images out")
    version = client.create_model_version(NAME, source, run_id, tags=tags)
    failpoint("version-created")
    return number_of(version)
