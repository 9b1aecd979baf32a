"""Create a new version: its files, the tags that pin them, its cards. All stored before the version appears."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from flows.registry import version_files
from flows.registry.cards import data_card, model_card
from flows.registry.evidence import PACKAGE, PAIRS, licences, sound_manifest
from flows.registry.versions import CONTENT, EVIDENCE, NAME, PINNED, number_of
from stages.runtime.tracking import experiment_of
from thousandwords.core.files import failpoint, write_bytes
from thousandwords.core.manifest import DamagedArtefact, write_manifest
from thousandwords.evaluation.gate import PARTS


def add_version(client: mlflow.MlflowClient, root: Path, evidence: dict, digest: str) -> str:
    """Upload everything to a new MLflow run, then create the version; returns its number."""
    run = client.create_run(
        experiment_of(client, root), tags={"mlflow.runName": "register", "stage": "register"}
    )
    status = "FAILED"
    try:
        source = f"{run.info.artifact_uri}/model"
        with tempfile.TemporaryDirectory() as folder:
            manifest = _write_files(root, Path(folder), evidence)
            client.log_artifacts(run.info.run_id, folder, "model")
        failpoint("version-stored")
        version_files.check_stored(client, source, manifest, "the new version")
        with contextlib.suppress(MlflowException):  # it exists already; if not, the next call says why
            client.create_registered_model(NAME, description="captions in, ranked images out")
        tags = {**_tags(evidence), PINNED: manifest["sha256"], CONTENT: digest}
        version = client.create_model_version(NAME, source, run.info.run_id, tags=tags)
        failpoint("version-created")
        status = "FINISHED"
        return number_of(version)
    finally:
        client.set_terminated(run.info.run_id, status)


def _write_files(root: Path, folder: Path, evidence: dict) -> dict:
    """Write all files of a version to `folder`; returns their manifest."""
    shutil.copytree(root / PACKAGE, folder / version_files.PACKAGE)
    card = model_card(NAME, evidence, {name: _header(root / PACKAGE / name) for name in PARTS})
    write_bytes(folder / "model_card.md", card.encode())
    write_bytes(folder / "data_card.md", data_card(NAME, *_data(root / PAIRS)).encode())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return write_manifest(folder, dict.fromkeys(names), {"package": evidence["package"]})


def _header(part: Path) -> dict:
    """A part's config.json; the text tokenizer's holds settings only."""
    header = json.loads((part / "config.json").read_bytes())
    return header if "kind" in header else {"kind": "byte-level BPE", "config": header}


def _data(pairs: Path) -> tuple[dict | None, dict | None]:
    """The input of the data card; captions of a damaged shard are not counted, and `make verify` names it."""
    from thousandwords.data.pair_shards import caption_counts  # late: it loads the shard readers

    manifest = sound_manifest(pairs)
    with contextlib.suppress(DamagedArtefact):
        return manifest, caption_counts(pairs)
    return manifest, None


def _tags(evidence: dict) -> dict[str, str]:
    """All evidence, and what a user searches for in MLflow's pages."""
    return {
        EVIDENCE: json.dumps(evidence, sort_keys=True, ensure_ascii=False),
        "package.sha256": evidence["package"],
        "git.commit": evidence["git"].get("commit", "none"),
        "git.is_dirty": str(evidence["git"].get("is_dirty", "unknown")).lower(),
        "dvc.lock.sha256": evidence["lock"] or "none",
        "data.licence": licences(evidence),
        **{f"run.{stage}": run_id for stage, run_id in evidence["runs"].items()},
    }
