"""python -m flows.registry register|promote|rollback|show|fetch: versions of the package in the MLflow registry.

A version is one row that appears after all its files are stored, in one transaction with the tags that pin them, so it is absent
or complete. `@challenger` is the last one registered, `@champion` the one in use; the gate (`thousandwords.gate`) stands between
them. `fetch` checks every byte against the pinned hashes and leaves loading to `thousandwords.package`: MLflow's own loader runs
code that it finds in a version. Left out: removing versions.
"""
from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import stages  # noqa: F401  first of all: it turns telemetry off

os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # before mlflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow  # noqa: E402
import yaml  # noqa: E402
from mlflow.entities.model_registry import ModelVersion  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.artifact.artifact_repo import ArtifactRepository  # noqa: E402
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: E402
from mlflow.utils.file_utils import local_file_uri_to_path  # noqa: E402

from flows._contents import PACKAGE, SERVED, check_contents, check_names  # noqa: E402
from flows._evidence import PACKAGE as MADE  # noqa: E402
from flows._evidence import evidence_of, gather, licences  # noqa: E402
from flows._model_card import model_card  # noqa: E402
from stages._run import experiment_of, tracking_uri  # noqa: E402
from thousandwords.config import section  # noqa: E402
from thousandwords.errors import UserError  # noqa: E402
from thousandwords.files import (  # noqa: E402
    MANIFEST,
    DamagedArtefact,
    check_file,
    failpoint,
    fingerprint,
    read_manifest,
    write_bytes,
    write_manifest,
)
from thousandwords.gate import PARTS, Config, decide  # noqa: E402

NAME = "thousandwords"
CHALLENGER, CHAMPION = "challenger", "champion"
PINNED = "files.sha256"  # the tag that names the manifest of all files; a version without it is nobody's
EVIDENCE = "evidence"
SAME_AS = "evidence.sha256"
SAME = ("package", "metrics", "prompts", "problems")  # a version is the same, whatever commit or run it is found in, by these
HISTORY = "champions"  # on the registered model: the versions that were champion, oldest first
HERE = Path(__file__).parent
MEND = "Do not use it: register the package again, or roll back"
MOST_MANIFEST = 2**22  # bytes; it is read before anything is known of it


class Refused(UserError):
    """The gate does not let a version become the champion."""


def register(root: Path = Path(".")) -> str:
    """A new version of the package in `root`, by its number, as @challenger; the newest one again where nothing has changed.

    Raises DamagedArtefact where there is no whole package, and UserError where MLflow does not answer. What speaks against the
    version does not raise: it is kept with it, and bars it from promotion.
    """
    root = Path(root)
    with _answering(root) as client:
        known = gather(root)
        digest = fingerprint({name: known[name] for name in SAME})
        version = _newest_with(client, digest) or _add(client, root, known, digest)
        move(client, CHALLENGER, version)
        return version


def promote(root: Path = Path("."), wanted: str = CHALLENGER) -> str:
    """Makes a version (its alias or number) the champion, if the gate of params.yaml lets it; returns its number.

    Raises Refused with every reason, or DamagedArtefact where its files are not the pinned ones; the alias is then as it was.
    """
    config = gate_of(root)
    with _answering(root) as client:
        candidate, champion = resolve(client, wanted), _champion(client)
        if champion is not None and _number(champion) == _number(candidate):
            return _number(candidate)
        refusals = decide(config, evidence_of(_known(candidate)), champion and evidence_of(_known(champion)))
        if refusals:
            against = f"beside champion {champion.version}" if champion else "as the first champion"
            lines = "".join(f"\n- {refusal}" for refusal in refusals)
            raise Refused(f"version {candidate.version} was not promoted {against}:{lines}")
        with tempfile.TemporaryDirectory() as folder:
            _fetch(candidate, Path(folder))
        before = _history(client, champion)
        _remember(client, [*before, _number(candidate)])  # first: a kill between the two leaves the champion where it was
        move(client, CHAMPION, _number(candidate))
        return _number(candidate)


def rollback(root: Path = Path(".")) -> str:
    """Makes the champion before this one the champion again; returns its number. Once more goes further back.

    Raises UserError where there is none, or where its files are no longer all there.
    """
    with _answering(root) as client:
        champion = _champion(client)
        if champion is None:
            raise UserError("there is no champion, so there is nothing to roll back. Run: make promote")
        *before, _ = _history(client, champion)
        if not before:
            raise UserError(f"no version was champion before version {champion.version}: there is nothing to roll back to")
        earlier = resolve(client, before[-1])
        _check_stored(_repository(earlier), _manifest_of(earlier), _label(earlier))
        move(client, CHAMPION, _number(earlier))
        _remember(client, before)
        return _number(earlier)


def fetch(wanted: str, folder: Path, root: Path = Path(".")) -> Path:
    """The package of a version (its alias or number), verified, in a folder of its own under `folder`; returns where.

    What is there and whole is not fetched again. Raises UserError where there is no such version, and DamagedArtefact where
    its files are not those it was registered with, or no version of ours would hold them. Nothing of it is run.
    """
    with _answering(root) as client:
        return _fetch(resolve(client, wanted), Path(folder))


def show(root: Path = Path(".")) -> list[str]:
    """A line per version, newest first."""
    with _answering(root) as client:
        versions = sorted(_versions(client), key=lambda version: int(version.version), reverse=True)
        aliases = client.get_registered_model(NAME).aliases if versions else {}  # the versions of a search know none
        return [_line(one, [alias for alias, number in aliases.items() if str(number) == _number(one)]) for one in versions]


def gate_of(root: Path) -> Config:
    """The section `gate` of `root`'s params.yaml, or the usual one; raises ConfigError."""
    path = Path(root) / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return section((params or {}).get("gate", {}), "gate", Config)


def resolve(client: mlflow.MlflowClient, wanted: str) -> ModelVersion:
    """The version of that alias or number; raises UserError."""
    try:
        if wanted.isdecimal():
            return client.get_model_version(NAME, wanted)
        return client.get_model_version_by_alias(NAME, wanted)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        mend = "make promote" if wanted == CHAMPION else "python -m flows.registry register"
        raise UserError(f"the registry has no version {wanted!r} of {NAME}. Run: {mend}") from error


def move(client: mlflow.MlflowClient, alias: str, version: str) -> None:
    """Points an alias at a version: at every moment it is the one or the other."""
    client.set_registered_model_alias(NAME, alias, version)


# --- putting a version together --------------------------------------------------------------------------------------


def _add(client: mlflow.MlflowClient, root: Path, known: dict, digest: str) -> str:
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
        artifacts={"package": str(root / MADE)},
        pip_requirements=requirements(),
    )
    card = model_card(NAME, known, {name: _header(root / MADE / name) for name in PARTS})
    write_bytes(folder / "model_card.md", card.encode())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = write_manifest(folder, dict.fromkeys(names), {"package": known["package"]})
    check_names(manifest["files"], "this version")
    return _tags(known, manifest["sha256"])


def _tags(known: dict, pinned: str) -> dict[str, str]:
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
    _check_stored(get_artifact_repository(source), read_manifest(folder, verify=False), "the new version")
    return source


def _create(client: mlflow.MlflowClient, run_id: str, source: str, tags: dict[str, str]) -> str:
    with contextlib.suppress(MlflowException):  # it is there already; if not, the next call says why
        client.create_registered_model(NAME, description="captions in, ranked pictures out")
    version = client.create_model_version(NAME, source, run_id, tags=tags)
    failpoint("version-created")
    return _number(version)


def _newest_with(client: mlflow.MlflowClient, digest: str) -> str | None:
    """The newest version, if it is the very same: the same package, figures, commit and problems."""
    newest = max(_versions(client), key=lambda version: int(version.version), default=None)
    return _number(newest) if newest and newest.tags.get(SAME_AS) == digest else None


# --- reading one back ------------------------------------------------------------------------------------------------


def _fetch(version: ModelVersion, folder: Path) -> Path:
    label, pinned = _label(version), _pinned(version)
    target = folder / f"{version.version}-{pinned[:16]}"
    if not _is_whole(target, pinned):
        manifest = _manifest_of(version)
        repository = _repository(version)
        _check_stored(repository, manifest, label)
        shutil.rmtree(target, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as partial:
            _download(repository, manifest, Path(partial) / "version", label)
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


def _manifest_of(version: ModelVersion) -> dict:
    """The manifest that the version's tag pins; raises DamagedArtefact where it is another one, or names what it should not."""
    repository, label, pinned = _repository(version), _label(version), _pinned(version)
    sizes = dict(_listing(repository, label))
    if not 0 < sizes.get(MANIFEST, 0) <= MOST_MANIFEST:
        raise DamagedArtefact(f"{label} has no manifest of its files. {MEND}")
    with tempfile.TemporaryDirectory() as folder:
        _from_store(label, MANIFEST, lambda: repository.download_artifacts(MANIFEST, folder))
        manifest = read_manifest(Path(folder), verify=False, mend=MEND)
    if manifest["sha256"] != pinned:
        raise DamagedArtefact(f"{label}: its manifest is {manifest['sha256'][:12]}, but its tag pins {pinned[:12]}. {MEND}")
    check_names(manifest["files"], label)
    return manifest


def _check_stored(repository: ArtifactRepository, manifest: dict, label: str) -> None:
    """Raises DamagedArtefact unless the store lists each file with its size, and no other."""
    found = dict(_listing(repository, label))
    wanted = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    for name in sorted(found.keys() - wanted.keys() - {MANIFEST}):
        raise DamagedArtefact(f"{label} holds {name!r}, which its manifest does not name. {MEND}")
    for name, size in sorted(wanted.items()):
        if found.get(name) != size:
            raise DamagedArtefact(f"{label}: {name} should be {size} bytes, found {found.get(name, 'no such file')}. {MEND}")


def _listing(repository: ArtifactRepository, label: str, path: str | None = None) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of every file of a version, as its store tells it; raises DamagedArtefact for a link."""
    _refuse_links(repository, label)
    folders: list[str | None] = [path]
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


def _repository(version: ModelVersion) -> ArtifactRepository:
    return get_artifact_repository(version.source)


def _pinned(version: ModelVersion) -> str:
    pinned = version.tags.get(PINNED)
    if not pinned:
        raise DamagedArtefact(f"{_label(version)} pins no files (it has no tag {PINNED}), so it was not registered whole. {MEND}")
    return pinned


def _known(version: ModelVersion) -> dict:
    _pinned(version)
    return json.loads(version.tags[EVIDENCE])


def _number(version: ModelVersion) -> str:
    return str(version.version)  # a whole number from a database, text from a server


def _label(version: ModelVersion) -> str:
    return f"version {version.version} of {version.name}"


# --- who was champion ------------------------------------------------------------------------------------------------


def _champion(client: mlflow.MlflowClient) -> ModelVersion | None:
    try:
        return resolve(client, CHAMPION)
    except UserError:
        return None


def _history(client: mlflow.MlflowClient, champion: ModelVersion | None) -> list[str]:
    """The versions that were champion, oldest first, up to the one that is; what a killed promotion added after it is no part."""
    if champion is None:
        return []
    history = json.loads(client.get_registered_model(NAME).tags.get(HISTORY, "[]"))
    if _number(champion) not in history:  # somebody set the alias by hand
        return [*history, _number(champion)]
    while history[-1] != _number(champion):
        history.pop()
    return history


def _remember(client: mlflow.MlflowClient, history: list[str]) -> None:
    client.set_registered_model_tag(NAME, HISTORY, json.dumps(history))


def _versions(client: mlflow.MlflowClient) -> list[ModelVersion]:
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{NAME}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _line(version: ModelVersion, aliases: list[str]) -> str:
    known = json.loads(version.tags.get(EVIDENCE, "{}"))
    problems = len(known.get("problems", []))
    said = f"{problems} problem{'s' * (problems > 1)}" if problems else "sound"
    commit, package = version.tags.get("git.commit", "none")[:8], version.tags.get("package.sha256", "none")[:12]
    named = "".join(f" @{alias}" for alias in sorted(aliases))
    return f"version {version.version}  package {package}  commit {commit}  {said}{named}"


@contextlib.contextmanager
def _answering(root: Path) -> Iterator[mlflow.MlflowClient]:
    """A client of this project's registry; what MLflow has against it becomes a UserError."""
    uri = tracking_uri(Path(root))
    try:
        if uri.startswith("sqlite:"):
            (Path(root) / ".mlflow").mkdir(exist_ok=True)
        with _named_to_mlflow(uri):
            yield mlflow.MlflowClient(uri, uri)
    except MlflowException as error:
        raise UserError(
            f"MLflow at {uri} did not do what was asked: {str(error)[:300]}. Start it, or unset MLFLOW_TRACKING_URI"
        ) from error


@contextlib.contextmanager
def _named_to_mlflow(uri: str) -> Iterator[None]:
    """Where MLflow looks when it asks nobody, as artefact stores of a server do.

    MLflow writes that into the environment, too, where every stage that this process starts would find it: so it is taken back.
    """
    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])
        mlflow.set_registry_uri(before["MLFLOW_REGISTRY_URI"])
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("register", help="models/package becomes a version, @challenger")
    promoted = commands.add_parser("promote", help="@challenger becomes @champion, if the gate lets it")
    promoted.add_argument("version", nargs="?", default=CHALLENGER, help="an alias or a number (default: challenger)")
    commands.add_parser("rollback", help="the champion before this one is champion again")
    commands.add_parser("show", help="all versions")
    fetched = commands.add_parser("fetch", help="a version's package, verified, into a folder")
    fetched.add_argument("version", nargs="?", default=CHAMPION, help="an alias or a number (default: champion)")
    fetched.add_argument("--out", type=Path, default=Path("models/fetched"), help="(default: models/fetched)")
    options = parser.parse_args(argv)
    try:
        print(_obey(options))
    except UserError as error:
        print(f"registry: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _obey(options: argparse.Namespace) -> str:
    if options.command == "register":
        return f"version {register()} is the challenger"
    if options.command == "promote":
        return f"version {promote(wanted=options.version)} is the champion"
    if options.command == "rollback":
        return f"version {rollback()} is the champion again"
    if options.command == "fetch":
        return str(fetch(options.version, options.out))
    return "\n".join(show()) or "nothing has been registered yet. Run: python -m flows.registry register"


if __name__ == "__main__":
    main()
