"""The files of a version, in its store or fetched, checked against the manifest that its tag pins.

A version holds models as safetensors and JSON, their manifests, its evidence, two cards, and what MLflow needs to
load it elsewhere: a description of the environment and the library's code, but no pickles. This project fetches
neither of the last two: nothing of a version is imported, run or unpickled here. A forged version, even one with
valid hashes, is rejected by the names of its files and the headers of its tensors.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from safetensors import SafetensorError, safe_open

from flows.registry.versions import FIX, label_of, pinned_sha256
from thousandwords.core.files import translate_write_errors, write_bytes
from thousandwords.core.manifest import MANIFEST, DamagedArtefact, check_file, read_manifest
from thousandwords.evaluation.gate import PARTS

PACKAGE, EVIDENCE = "artifacts/package", "evidence.json"
FETCHED = re.compile(
    rf"{EVIDENCE}|(model|data)_card\.md|{PACKAGE}/(({'|'.join((*PARTS, 'captioner'))})/)?[a-z_]+\.(json|safetensors)"
)
# read by MLflow's load_model and `mlflow models serve` only (flows/registry/pyfunc_model.py)
FOR_MLFLOW = re.compile(
    r"MLmodel|conda\.yaml|python_env\.yaml|requirements\.txt|code/thousandwords/([a-z0-9_]+/)*[a-z0-9_]+\.py"
)
# Python writes it beside the code that MLflow loads from a local store
BYTECODE = re.compile(r"code/(\w+/)*__pycache__")
FORGED = "Do not use it; register a package of your own"
MLFLOW_METADATA = "registered_model_meta"  # MLflow's own download adds it to a local store; it is not fetched
MAX_MANIFEST_BYTES = 2**22  # the manifest is read before its hash is checked


def fetch_version(client: mlflow.MlflowClient, version: ModelVersion, folder: Path) -> Path:
    """Fetch and verify a version's package into a folder of its own. Raises DamagedArtefact."""
    sha256, label = pinned_sha256(version), label_of(version)
    target = folder / f"{version.version}-{sha256[:16]}"
    if _is_complete(target, sha256):
        return target / PACKAGE
    manifest, repository = read_pinned_manifest(client, version), _repository(client, version.source)
    shutil.rmtree(target, ignore_errors=True)
    with translate_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
        partial = Path(temporary) / "version"
        for name, entry in _fetched_files(manifest).items():
            path = _download(repository, name, partial, label)
            check_file(path, entry, FIX)
            if name.endswith(".safetensors"):
                _check_tensors(path, f"{label}: {name}")
        write_bytes(partial / MANIFEST, json.dumps(manifest).encode())
        try:
            os.replace(partial, target)
        except OSError:  # another process was faster
            if not _is_complete(target, sha256):
                raise
    return target / PACKAGE


def fetch_all(client: mlflow.MlflowClient, version: ModelVersion, folder: Path) -> dict:
    """Fetch and verify every file of a version, for a copy of it, into an empty folder; its manifest."""
    manifest, repository = read_pinned_manifest(client, version), _repository(client, version.source)
    for name, entry in manifest["files"].items():
        check_file(_download(repository, name, folder, label_of(version)), entry, FIX)
    write_bytes(folder / MANIFEST, json.dumps(manifest).encode())
    return manifest


def _check_tensors(path: Path, label: str) -> None:
    """The library checks the header: its size, and that the tensors neither overlap nor leave gaps."""
    try:
        with safe_open(path, "numpy"):
            pass
    except SafetensorError as error:
        raise DamagedArtefact(f"{label} is not a safetensors file ({error}). {FORGED}") from error


def _is_complete(folder: Path, sha256: str) -> bool:
    with contextlib.suppress(DamagedArtefact):
        manifest = read_manifest(folder, verify=False)
        for name, entry in _fetched_files(manifest).items():
            check_file(folder / name, entry, FIX)
        return manifest["sha256"] == sha256
    return False


def _fetched_files(manifest: dict) -> dict[str, dict]:
    return {name: entry for name, entry in manifest["files"].items() if FETCHED.fullmatch(name)}


def read_file(client: mlflow.MlflowClient, version: ModelVersion, name: str) -> bytes:
    """One file of a version, verified, whether or not the others are complete. Raises DamagedArtefact."""
    repository, label = _repository(client, version.source), label_of(version)
    sizes = {entry.path: entry.file_size for entry in repository.list_artifacts()}
    manifest = _read_manifest(repository, sizes, version)
    if name not in manifest["files"]:
        raise DamagedArtefact(f"{label} holds no {name}. {FIX}")
    with tempfile.TemporaryDirectory() as folder:
        path = _download(repository, name, Path(folder), label)
        check_file(path, manifest["files"][name], FIX)
        return path.read_bytes()


def read_pinned_manifest(client: mlflow.MlflowClient, version: ModelVersion) -> dict:
    """The manifest that the version's tag pins, after a check that its store lists exactly those files.

    Raises DamagedArtefact if it is another manifest, or if the store or the manifest names a forbidden file.
    """
    repository, label = _repository(client, version.source), label_of(version)
    sizes = _list_files(repository, label)
    manifest = _read_manifest(repository, sizes, version)
    _check_list(sizes, manifest, label)
    return manifest


def _read_manifest(
    repository: ArtifactRepository, sizes: dict[str, int | None], version: ModelVersion
) -> dict:
    label, pinned = label_of(version), pinned_sha256(version)
    if not 0 < sizes.get(MANIFEST, 0) <= MAX_MANIFEST_BYTES:
        raise DamagedArtefact(f"{label} has no manifest of its files. {FIX}")
    with tempfile.TemporaryDirectory() as folder:
        _download(repository, MANIFEST, Path(folder), label)
        manifest = read_manifest(Path(folder), verify=False, fix=FIX)
    if manifest["sha256"] != pinned:
        found = manifest["sha256"][:12]
        raise DamagedArtefact(f"{label}: its manifest is {found}, but its tag pins {pinned[:12]}. {FIX}")
    return manifest


def check_stored(client: mlflow.MlflowClient, source: str, manifest: dict, label: str) -> None:
    """Raises DamagedArtefact unless the store lists exactly the manifest's files with their sizes."""
    _check_list(_list_files(_repository(client, source), label), manifest, label)


def _check_list(sizes: dict[str, int | None], manifest: dict, label: str) -> None:
    expected = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    for name in (*sizes, *expected):
        if name != MANIFEST and not FETCHED.fullmatch(name) and not FOR_MLFLOW.fullmatch(name):
            raise DamagedArtefact(f"{label} holds {name!r}, which is no part of a package. {FORGED}")
    for name in sorted(sizes.keys() - expected.keys() - {MANIFEST}):
        raise DamagedArtefact(f"{label} holds {name!r}, which its manifest does not name. {FIX}")
    for name, size in sorted(expected.items()):
        if sizes.get(name) != size:
            found = sizes.get(name, "no such file")
            raise DamagedArtefact(f"{label}: {name} should be {size} bytes, found {found}. {FIX}")


def _list_files(repository: ArtifactRepository, label: str) -> dict[str, int | None]:
    """{name: bytes} of every file of a version, as its store lists it; raises DamagedArtefact for a link."""
    with contextlib.suppress(MlflowException):  # a store on this machine, where a link could point out of it
        place = Path(local_file_uri_to_path(repository.artifact_uri))
        for path in place.rglob("*") if place.is_dir() else ():
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DamagedArtefact(f"{label} holds {path.name!r}, which is a link or a device. {FIX}")
    sizes: dict[str, int | None] = {}
    folders: list[str | None] = [None]
    while folders:
        for entry in repository.list_artifacts(folders.pop()):
            if entry.is_dir:
                if not BYTECODE.fullmatch(entry.path):
                    folders.append(entry.path)
            elif entry.path != MLFLOW_METADATA:
                sizes[entry.path] = entry.file_size
    return sizes


def _repository(client: mlflow.MlflowClient, source: str) -> ArtifactRepository:
    return get_artifact_repository(source, client.tracking_uri, client.tracking_uri)


def _download(repository: ArtifactRepository, name: str, folder: Path, label: str) -> Path:
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        repository.download_artifacts(name, str(folder))
    except (MlflowException, OSError) as error:
        raise DamagedArtefact(f"{label}: {name} cannot be fetched ({str(error)[:200]}). {FIX}") from error
    return folder / name
