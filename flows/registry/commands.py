"""Register, promote, roll back, fetch and serve versions of the package in the MLflow registry.

A version is one database row that appears after all its files are stored, in one transaction with the tags
that pin them, so it is absent or complete. `@challenger` is the last version registered, `@champion` the one
in use; `thousandwords.evaluation.gate` decides on a promotion. Not here: deleting versions.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from flows.registry import version_files, versions
from flows.registry.cards import data_card, model_card
from flows.registry.evidence import (
    METRICS,
    PACKAGE,
    PAIRS,
    gate_evidence,
    gather_evidence,
    params_of,
    sound_manifest,
)
from flows.registry.pyfunc_model import write_pyfunc_model
from flows.registry.versions import NAME, VersionSummary, number_of, registry_client, resolve, turn_to_move
from stages.runtime.tracking import experiment_of, find_records, fit, log_headline, log_metrics, log_params
from thousandwords.core.config import section
from thousandwords.core.errors import UserError
from thousandwords.core.files import failpoint, fingerprint, write_bytes, write_json
from thousandwords.core.manifest import DamagedArtefact, write_manifest
from thousandwords.evaluation.gate import PARTS, GateConfig, decide

FETCHED = Path(".store/registry")  # may be deleted at any time
MODEL, MODEL_CARD, OVERVIEW = "model", "model_card.md", "results/ranked/overview.png"
MAX_DESCRIPTION, CUT = 5000, "\n\n*Cut here: model_card.md of this version has all of it.*"  # MLflow's limit
# equal in these: the same version, whatever commit or run
IDENTITY = ("package", "metrics", "prompts", "problems")


class PromotionRejected(UserError):
    """The gate does not let a version become the champion."""


def register(root: Path = Path(".")) -> str:
    """Register the package in `root` as @challenger and return its number: the newest version's if nothing changed.

    Raises DamagedArtefact if there is no complete package, and UserError if MLflow does not answer. Problems of the
    version raise nothing: they are stored with it, and prevent its promotion.
    """
    root = Path(root)
    with registry_client(root) as client:
        evidence = gather_evidence(root)
        digest = fingerprint({name: evidence[name] for name in IDENTITY})
        newest = next(iter(versions.newest_first(client)), None)
        if newest and newest.tags.get(versions.CONTENT) == digest:
            version = number_of(newest)
        else:
            version = _add_version(client, root, evidence, digest)
        versions.move_alias(client, versions.CHALLENGER, version)
        return version


def _add_version(client: mlflow.MlflowClient, root: Path, evidence: dict, digest: str) -> str:
    """Upload everything to a new MLflow run, then create the version; returns its number."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = _write_files(root, Path(folder), evidence)
        licences = {origin["licence"] for origin in (evidence["data"] or {}).get("origins", [])}
        tags = {
            versions.PINNED: manifest["sha256"],
            versions.CONTENT: digest,
            # what a user searches for in MLflow's pages; all other hashes are in evidence.json
            versions.PACKAGE: evidence["package"],
            versions.COMMIT: evidence["git"].get("commit", "none"),
            versions.SOUNDNESS: versions.soundness(evidence["problems"]),
            "data.licence": ", ".join(sorted(licences)) or "not stated",
        }
        with _uploaded(client, root, folder, manifest, _parent_tag(client, root)) as run:
            _describe_run(client, run.info.run_id, root)
            return _create_version(client, run, folder, tags)


@contextlib.contextmanager
def _uploaded(
    client: mlflow.MlflowClient, root: Path, folder: str, manifest: dict, tags: dict[str, str]
) -> Iterator[Run]:
    """A new MLflow run with the files of a version; it is finished if nothing fails until the end of the block."""
    tags = {"mlflow.runName": "register", "stage": "register", **tags}
    run = client.create_run(experiment_of(client, root), tags=tags)
    status = "FAILED"
    try:
        client.log_artifacts(run.info.run_id, folder, MODEL)
        failpoint("version-stored")
        version_files.check_stored(client, f"{run.info.artifact_uri}/{MODEL}", manifest, "the new version")
        yield run
        status = "FINISHED"
    finally:
        client.set_terminated(run.info.run_id, status)


def _create_version(client: mlflow.MlflowClient, run: Run, folder: str, tags: dict[str, str]) -> str:
    """The version of a run with its files; returns its number."""
    with contextlib.suppress(MlflowException):  # it exists already; if not, the next call says why
        client.create_registered_model(NAME, description="captions in, ranked images out")
    description = fit(Path(folder, MODEL_CARD).read_text("utf-8"), MAX_DESCRIPTION, CUT)
    source = f"{run.info.artifact_uri}/{MODEL}"
    version = client.create_model_version(NAME, source, run.info.run_id, tags=tags, description=description)
    failpoint("version-created")
    return number_of(version)


def copy_versions(uri: str, root: Path = Path(".")) -> list[str]:
    """Copy the versions of the registry at `uri` that this one lacks, oldest first, every file verified; their numbers.

    Its champion and challenger become those of a registry that has none. Raises DamagedArtefact before the first
    damaged version, with those before it copied, and UserError if MLflow does not answer.
    """
    root = Path(root)
    with registry_client(root) as client:
        other = mlflow.MlflowClient(uri, uri)
        present = [each for each in versions.newest_first(client) if versions.PINNED in each.tags]
        numbers = {_content_of(version): number_of(version) for version in present}
        copied, same = [], {}
        for version in reversed(versions.newest_first(other)):
            content = _content_of(version)
            if content not in numbers:
                numbers[content] = _copy_version(client, root, other, version)
                copied.append(numbers[content])
            same[number_of(version)] = numbers[content]
        if not copied:
            return []
        aliases = client.get_registered_model(NAME).aliases
        missing = {
            alias: same[str(number)]
            for alias, number in other.get_registered_model(NAME).aliases.items()
            if alias not in aliases
        }
        if challenger := missing.get(versions.CHALLENGER):
            versions.move_alias(client, versions.CHALLENGER, challenger)
        if champion := missing.get(versions.CHAMPION):
            with turn_to_move(client, champion) as turn:
                versions.add_champion(client, turn, (), champion)
        return copied


def _content_of(version: ModelVersion) -> str:
    """Equal in two versions of the same content; raises DamagedArtefact for one that pins no files."""
    return version.tags.get(versions.CONTENT) or versions.pinned_sha256(version)


def _copy_version(
    client: mlflow.MlflowClient, root: Path, other: mlflow.MlflowClient, version: ModelVersion
) -> str:
    with tempfile.TemporaryDirectory() as folder:
        manifest = version_files.fetch_all(other, version, Path(folder))
        data = other.get_run(version.run_id).data
        with _uploaded(client, root, folder, manifest, {"copied.from": f"version {version.version}"}) as run:
            log_params(client, run.info.run_id, data.params)
            log_metrics(client, run.info.run_id, data.metrics)
            return _create_version(client, run, folder, dict(version.tags))


def _parent_tag(client: mlflow.MlflowClient, root: Path) -> dict[str, str]:
    """The tag that shows a run below the pipeline's run that evaluated the package, if it is in the same store."""
    record = find_records(root, ["evaluate"]).get("evaluate", {})
    with contextlib.suppress(MlflowException):
        if parent_id := record.get("parent_run_id"):
            return {"mlflow.parentRunId": client.get_run(parent_id).info.run_id}
    return {}


def _describe_run(client: mlflow.MlflowClient, run_id: str, root: Path) -> None:
    """Log what MLflow's page *Compare* shows of versions: settings and headline figures; and an image."""
    log_params(client, run_id, params_of(root))
    if (root / METRICS).is_file():
        log_headline(client, run_id, root / METRICS)
    if (root / OVERVIEW).is_file():
        client.log_artifact(run_id, str(root / OVERVIEW))


def _write_files(root: Path, folder: Path, evidence: dict) -> dict:
    """Write all files of a version to `folder`; returns their manifest."""
    from thousandwords.data.pair_shards import caption_counts  # late: it loads the shard readers

    write_pyfunc_model(folder)
    shutil.copytree(root / PACKAGE, folder / version_files.PACKAGE)
    configs = {name: json.loads((root / PACKAGE / name / "config.json").read_bytes()) for name in PARTS}
    settings = {  # the text tokenizer's file holds settings only
        name: config if "kind" in config else {"kind": "byte-level BPE", "config": config}
        for name, config in configs.items()
    }
    captions = None
    with contextlib.suppress(DamagedArtefact):  # of a damaged shard, which `make verify` names
        captions = caption_counts(root / PAIRS)
    write_bytes(folder / MODEL_CARD, model_card(NAME, evidence, settings).encode())
    write_bytes(folder / "data_card.md", data_card(NAME, sound_manifest(root / PAIRS), captions).encode())
    write_json(folder / version_files.EVIDENCE, evidence)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return write_manifest(folder, dict.fromkeys(names), {"package": evidence["package"]})


def promote(root: Path = Path("."), version: str = versions.CHALLENGER) -> str:
    """Make a version (its alias or number) the champion, if the gate of params.yaml accepts it; its number.

    Raises PromotionRejected with every reason, or DamagedArtefact if its files are not the pinned ones; the alias
    then stays. If another version becomes champion meanwhile, the gate decides again, against that one.
    """
    config = section(params_of(Path(root)).get("gate", {}), "gate", GateConfig)
    with registry_client(root) as client, tempfile.TemporaryDirectory() as folder:
        candidate = resolve(client, version)
        number = number_of(candidate)
        if _champions_before(client, config, candidate) is None:
            return number
        version_files.fetch_version(client, candidate, Path(folder))
        with turn_to_move(client, number) as turn:
            champions = _champions_before(client, config, candidate)
            if champions is not None:
                versions.add_champion(client, turn, champions, number)
        return number


def _champions_before(
    client: mlflow.MlflowClient, config: GateConfig, candidate: ModelVersion
) -> tuple[str, ...] | None:
    """The champions that the candidate may follow; None if it is the champion. Raises PromotionRejected."""
    champions = versions.read_champions(client)
    if number_of(candidate) in champions[-1:]:
        return None
    champion = resolve(client, champions[-1]) if champions else None
    before = champion and gate_evidence(client, champion)
    if reasons := decide(config, gate_evidence(client, candidate), before):
        against = f"against champion {champion.version}" if champion else "as the first champion"
        lines = "".join(f"\n- {reason}" for reason in reasons)
        raise PromotionRejected(f"version {candidate.version} was not promoted {against}:{lines}")
    return champions


def rollback(root: Path = Path(".")) -> str:
    """Make the previous champion the champion again and return its number; a second rollback goes further back.

    Raises UserError if there is none, if its files are no longer complete, or if another version became champion
    meanwhile.
    """
    with registry_client(root) as client:
        champions = versions.read_champions(client)
        if not champions:
            raise UserError("there is no champion, so there is nothing to roll back. Run: make promote")
        *previous, champion = champions
        if not previous:
            found = f"no version was champion before version {champion}"
            raise UserError(f"{found}: there is nothing to roll back to")
        version_files.read_pinned_manifest(client, resolve(client, previous[-1]))
        with turn_to_move(client, champion) as turn:
            now = versions.read_champions(client)
            if now == champions:
                versions.remove_champion(client, turn, champions)
            elif now != tuple(previous):
                raise UserError(
                    f"version {champion} has just been replaced as champion by another command, so it was not rolled back. "
                    "Look with: python -m flows.registry show"
                )
        return previous[-1]


def fetch(version: str, folder: Path, root: Path = Path(".")) -> Path:
    """Fetch and verify the package of a version (its alias or number) into its own folder under `folder`; the path.

    A complete package is not fetched again. Raises UserError if there is no such version, and DamagedArtefact if its
    files are not those it was registered with, or are none that this project writes. No code of the version is run.
    """
    with registry_client(root) as client:
        return version_files.fetch_version(client, resolve(client, version), Path(folder))


def list_versions(root: Path = Path(".")) -> list[VersionSummary]:
    """All versions, newest first."""
    with registry_client(root) as client:
        found = versions.newest_first(client)
        aliases = client.get_registered_model(NAME).aliases if found else {}
        return [versions.summarize(version, aliases) for version in found]


def show(root: Path = Path(".")) -> list[str]:
    return [str(summary) for summary in list_versions(root)]


def serve(version: str, port: int, hosts: list[str], root: Path = Path(".")) -> None:
    """Fetch and verify a version, then replace this process by the server of it, on 127.0.0.1."""
    package = fetch(version, FETCHED, root)
    allowed = [f"--allowed-host={host}" for host in hosts]
    command = [sys.executable, "-m", "studio.serve", str(package), "--port", str(port), *allowed]
    os.execv(sys.executable, command)
