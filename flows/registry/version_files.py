"""The files of a version, in its store or fetched, checked against the manifest that its tag pins.

A version holds models as safetensors and JSON, their manifests, and two cards: no code, no pickles. A
forged version, even one with valid hashes, is rejected by the names of its files and the headers of its tensors;
nothing of it is imported, run or unpickled.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path
from safetensors import SafetensorError, safe_open

from flows.registry.versions import FIX, label_of, pinned_sha256
from thousandwords.core.files import write_bytes
from thousandwords.core.manifest import MANIFEST, DamagedArtefact, check_file, read_manifest
from thousandwords.evaluation.gate import PARTS

PACKAGE = "artifacts/package"
ALLOWED = re.compile(
    rf"{MANIFEST}|(model|data)_card\.md|{PACKAGE}/(({'|'.join(PARTS)})/)?[a-z_]+\.(json|safetensors)"
)
FORGED = "Do not use it; register a package of your own"
MLFLOW_METADATA = "registered_model_meta"  # MLflow's own download adds it to a local store; it is not fetched
MAX_MANIFEST_BYTES = 2**22  # the manifest is read before its hash is checked


def fetch_version(client: mlflow.MlflowClient, version: ModelVersion, folder: Path) -> Path:
    """Fetch and verify a version's package into a folder of its own. Raises DamagedArtefact."""
    sha256 = pinned_sha256(version)
    target = folder / f"{version.version}-{sha256[:16]}"
    if not _is_complete(target, sha256):
        manifest = read_pinned_manifest(client, version)
        shutil.rmtree(target, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            partial = Path(temporary) / "version"
            _download(_repository(client, version.source), manifest, partial, label_of(version))
            try:
                os.replace(partial, target)
            except OSError:  # another process was faster
                if not _is_complete(target, sha256):
                    raise
    return target / PACKAGE


def _repository(client: mlflow.MlflowClient, source: str) -> ArtifactRepository:
    return get_artifact_repository(source, client.tracking_uri, client.tracking_uri)


def _download(repository: ArtifactRepository, manifest: dict, folder: Path, label: str) -> None:
    """Download and check each file that the pinned manifest names, and no other; then check their content."""
    for name, entry in manifest["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _from_store(label, name, lambda name=name: repository.download_artifacts(name, str(folder)))
        check_file(folder / name, entry, FIX)
        if name.endswith(".safetensors"):
            _check_tensors(folder / name, f"{label}: {name}")
    write_bytes(folder / MANIFEST, json.dumps(manifest).encode())


def _is_complete(folder: Path, sha256: str) -> bool:
    with contextlib.suppress(DamagedArtefact):
        return read_manifest(folder)["sha256"] == sha256
    return False


def read_pinned_manifest(client: mlflow.MlflowClient, version: ModelVersion) -> dict:
    """The manifest that the version's tag pins, after a check that its store lists exactly those files.

    Raises DamagedArtefact if it is another manifest, if it names a forbidden file, or if the store holds
    other files.
    """
    repository, label = _repository(client, version.source), label_of(version)
    expected_sha256 = pinned_sha256(version)
    sizes = dict(_list_files(repository, label))
    sizes.pop(MLFLOW_METADATA, None)
    if not 0 < sizes.get(MANIFEST, 0) <= MAX_MANIFEST_BYTES:
        raise DamagedArtefact(f"{label} has no manifest of its files. {FIX}")
    with tempfile.TemporaryDirectory() as folder:
        _from_store(label, MANIFEST, lambda: repository.download_artifacts(MANIFEST, folder))
        manifest = read_manifest(Path(folder), verify=False, fix=FIX)
    if manifest["sha256"] != expected_sha256:
        raise DamagedArtefact(
            f"{label}: its manifest is {manifest['sha256'][:12]}, but its tag pins {expected_sha256[:12]}. {FIX}"
        )
    _check_names([*sizes, *manifest["files"]], label)
    _check_sizes(sizes, manifest, label)
    return manifest


def check_stored(client: mlflow.MlflowClient, source: str, manifest: dict, label: str) -> None:
    """Raises DamagedArtefact unless the store lists exactly the manifest's files with their sizes."""
    sizes = dict(_list_files(_repository(client, source), label))
    _check_names(manifest["files"], label)
    _check_sizes(sizes, manifest, label)


def _check_names(names: list[str], label: str) -> None:
    """No file that this project never writes: above all no code that MLflow would run."""
    for name in names:
        if not ALLOWED.fullmatch(name):
            raise DamagedArtefact(f"{label} holds {name!r}, which is no part of a package. {FORGED}")


def _check_sizes(sizes: dict[str, int | None], manifest: dict, label: str) -> None:
    expected = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    for name in sorted(sizes.keys() - expected.keys() - {MANIFEST}):
        raise DamagedArtefact(f"{label} holds {name!r}, which its manifest does not name. {FIX}")
    for name, size in sorted(expected.items()):
        if sizes.get(name) != size:
            raise DamagedArtefact(
                f"{label}: {name} should be {size} bytes, found {sizes.get(name, 'no such file')}. {FIX}"
            )


def _list_files(repository: ArtifactRepository, label: str) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of every file of a version, as its store lists it; raises DamagedArtefact for a link."""
    _reject_links(repository, label)
    folders: list[str | None] = [None]
    while folders:
        for entry in repository.list_artifacts(folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                yield entry.path, entry.file_size


def _reject_links(repository: ArtifactRepository, label: str) -> None:
    """A link in a store on this machine could point out of it."""
    with contextlib.suppress(MlflowException):
        folder = Path(local_file_uri_to_path(repository.artifact_uri))
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DamagedArtefact(f"{label} holds {path.name!r}, which is a link or a device. {FIX}")


def _from_store(label: str, name: str, download: Callable[[], object]) -> None:
    try:
        download()
    except (MlflowException, OSError) as error:
        raise DamagedArtefact(f"{label}: {name} cannot be fetched ({str(error)[:200]}). {FIX}") from error


def _check_tensors(path: Path, label: str) -> None:
    """The library checks the header: its size, and that the tensors neither overlap nor leave gaps."""
    try:
        with safe_open(path, "numpy"):
            pass
    except SafetensorError as error:
        raise DamagedArtefact(f"{label} is not a safetensors file ({error}). {FORGED}") from error
