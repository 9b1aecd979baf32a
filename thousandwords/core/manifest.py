"""A folder's manifest.json: size, sha256 and row count of each file, checked before the files are used."""

import json
from pathlib import Path

from thousandwords.core.errors import UserError
from thousandwords.core.files import failpoint, fingerprint, sha256_of, write_json

MANIFEST = "manifest.json"


class DamagedArtefact(UserError):
    """A file is missing, truncated, or differs from its manifest."""


def write_manifest(
    folder: Path, rows: dict[str, int | None], metadata: dict, digests: dict[str, str] | None = None
) -> dict:
    """Write `folder/manifest.json` for the files in `rows`: file name -> row count (None: no rows).

    `digests` are sha256s that are already known from writing; the other files are hashed.
    """
    folder, digests = Path(folder), digests or {}
    files = {
        name: {
            "sha256": digests.get(name) or sha256_of(folder / name),
            "bytes": (folder / name).stat().st_size,
            "rows": count,
        }
        for name, count in sorted(rows.items())
    }
    body = {"files": files, "facts": metadata}
    manifest = {**body, "sha256": fingerprint(body)}
    write_json(folder / MANIFEST, manifest)
    failpoint("after-manifest")
    return manifest


def read_manifest(folder: Path, verify: bool = True, fix: str = "dvc checkout, or dvc repro") -> dict:
    """The manifest of `folder`, after checking its own sha256 and, with `verify`, every file it names.

    Raises DamagedArtefact with the file, the expected value, the value found, and the command that fixes it.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DamagedArtefact(f"{path} is missing, so nothing in {folder} can be trusted. Run: {fix}")
    try:
        manifest = json.loads(path.read_bytes())
        sha256 = fingerprint({"files": manifest["files"], "facts": manifest["facts"]})
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtefact(f"{path} cannot be read ({error}). Run: {_command(fix)}") from error
    if sha256 != manifest.get("sha256"):
        raise DamagedArtefact(
            f"{path} was changed: its sha256 should be {manifest.get('sha256')}, found {sha256}. Run: {_command(fix)}"
        )
    if verify:
        for name, entry in manifest["files"].items():
            check_file(Path(folder) / name, entry, fix)
    return manifest


def check_file(path: Path, entry: dict, fix: str) -> None:
    """Raise DamagedArtefact unless `path` has the size and the sha256 of its manifest entry."""
    if not path.is_file():
        raise DamagedArtefact(f"{path} is missing, but its manifest names it. Run: {fix}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise DamagedArtefact(f"{path} should be {entry['bytes']} bytes, found {size}. Run: {_command(fix)}")
    sha256 = sha256_of(path)
    if sha256 != entry["sha256"]:
        raise DamagedArtefact(
            f"{path} is damaged: sha256 should be {entry['sha256']}, found {sha256}. Run: {_command(fix)}"
        )


def _command(fix: str) -> str:
    """DVC takes a damaged file whose time is the same for unchanged; `make repair` reads every byte."""
    return "make repair" if fix.startswith("dvc ") else fix


def clear(folder: Path, *patterns: str) -> None:
    """Remove what an earlier run left in `folder`: its manifest, then files that match `patterns`."""
    for pattern in (MANIFEST, *patterns, ".*.tmp"):
        for old in Path(folder).glob(pattern):
            old.unlink()
