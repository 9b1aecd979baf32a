"""The files of a version, in its store and fetched from it, against the manifest that its tag pins. Nothing of them is run."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path

from flows._contents import PACKAGE, check_contents, check_names
from flows._versions import MEND, label_of, pinned_by
from thousandwords.files import MANIFEST, DamagedArtefact, check_file, read_manifest, write_bytes

MLFLOWS_NOTE = "registered_model_meta"  # MLflow leaves it in a local store when it loads a version; nobody fetches it
MOST_MANIFEST = 2**22  # bytes; it is read before anything is known of it


def fetch_version(version: ModelVersion, folder: Path) -> Path:
    """The package of a version, verified, in a folder of its own under `folder`. Raises DamagedArtefact."""
    pinned = pinned_by(version)
    target = folder / f"{version.version}-{pinned[:16]}"
    if not _is_whole(target, pinned):
        manifest = manifest_of(version)
        shutil.rmtree(target, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as partial:
            _download(get_artifact_repository(version.source), manifest, Path(partial) / "version", label_of(version))
            _take(Path(partial) / "version", target, pinned)
    return target / PACKAGE


def _take(made: Path, target: Path, pinned: str) -> None:
    """Gives a finished folder its name, unless another process was quicker."""
    try:
        os.replace(made, target)
    except OSError:
        if not _is_whole(target, pinned):
            raise


def _download(repository: ArtifactRepository, manifest: dict, folder: Path, label: str) -> None:
    """Each file that the pinned manifest names, and no other, its bytes checked; then what the bytes say."""
    for name, entry in manifest["files"].items():
        place = (folder / name).parent
        place.mkdir(parents=True, exist_ok=True)
        _from_store(label, name, lambda name=name: repository.download_artifacts(name, str(folder)))
        check_file(folder / name, entry, MEND)
    check_contents(folder, label)
    write_bytes(folder / MANIFEST, json.dumps(manifest).encode())


def _is_whole(folder: Path, pinned: str) -> bool:
    try:
        return read_manifest(folder)["sha256"] == pinned
    except DamagedArtefact:
        return False


def manifest_of(version: ModelVersion) -> dict:
    """The manifest that the version's tag pins, once its store lists each file that it names, and no other.

    Raises DamagedArtefact where it is another one, or names what it should not, or where the store holds other files.
    """
    repository, label, pinned = get_artifact_repository(version.source), label_of(version), pinned_by(version)
    found = dict(_listing(repository, label))
    if not 0 < found.get(MANIFEST, 0) <= MOST_MANIFEST:
        raise DamagedArtefact(f"{label} has no manifest of its files. {MEND}")
    with tempfile.TemporaryDirectory() as folder:
        _from_store(label, MANIFEST, lambda: repository.download_artifacts(MANIFEST, folder))
        manifest = read_manifest(Path(folder), verify=False, mend=MEND)
    if manifest["sha256"] != pinned:
        raise DamagedArtefact(f"{label}: its manifest is {manifest['sha256'][:12]}, but its tag pins {pinned[:12]}. {MEND}")
    check_names(manifest["files"], label)
    _compare(found, manifest, label)
    return manifest


def check_stored(source: str, manifest: dict, label: str) -> None:
    """Raises DamagedArtefact unless the store lists each file with its size, and no other."""
    _compare(dict(_listing(get_artifact_repository(source), label)), manifest, label)


def _compare(found: dict[str, int | None], manifest: dict, label: str) -> None:
    wanted = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    for name in sorted(found.keys() - wanted.keys() - {MANIFEST, MLFLOWS_NOTE}):
        raise DamagedArtefact(f"{label} holds {name!r}, which its manifest does not name. {MEND}")
    for name, size in sorted(wanted.items()):
        if found.get(name) != size:
            raise DamagedArtefact(f"{label}: {name} should be {size} bytes, found {found.get(name, 'no such file')}. {MEND}")


def _listing(repository: ArtifactRepository, label: str) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of every file of a version, as its store tells it; raises DamagedArtefact for a link."""
    _refuse_links(repository, label)
    folders: list[str | None] = [None]
    while folders:
        for entry in repository.list_artifacts(folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                yield entry.path, entry.file_size


def _refuse_links(repository: ArtifactRepository, label: str) -> None:
    """A store in a folder of this machine could point out of it."""
    with contextlib.suppress(MlflowException):
        place = Path(local_file_uri_to_path(repository.artifact_uri))
        for path in place.rglob("*") if place.is_dir() else ():
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DamagedArtefact(f"{label} holds {path.name!r}, which is a link or a device. {MEND}")


def _from_store(label: str, name: str, get: Callable[[], object]) -> None:
    try:
        get()
    except (MlflowException, OSError) as error:
        raise DamagedArtefact(f"{label}: {name} cannot be fetched ({str(error)[:200]}). {MEND}") from error
