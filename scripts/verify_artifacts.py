"""python -m stages._verify: re-hashes everything that was made here.

Folders against their own manifests, checkpoints too; single pages, curves, plots and records, which have none, against dvc.lock.
"""
from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from thousandwords.files import MANIFEST, DamagedArtefact, read_manifest

ROOTS = ("data", "models", "results", ".ckpt")
MEND = "dvc checkout, or dvc repro"
LESS = "nothing, an older checkpoint is used; or delete that folder"


def verify(roots: tuple[str, ...] = ROOTS, lock: Path = Path("dvc.lock")) -> tuple[list[Path], list[str]]:
    """(the folders and files that are whole, a sentence for each that is not)."""
    whole, complaints = [], []
    for path, check in [*_folders(roots), *_outputs(lock)]:
        try:
            check()
            whole.append(path)
        except (DamagedArtefact, OSError) as error:
            complaints.append(str(error))
    return whole, complaints


def _folders(roots: tuple[str, ...]) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Every folder with a manifest; a hidden one is of a save that was killed, which the next save removes."""
    for manifest in sorted(path for root in roots for path in Path(root).rglob(MANIFEST)):
        folder = manifest.parent
        if not folder.name.startswith("."):
            yield folder, lambda folder=folder: _check_folder(folder)


def _check_folder(folder: Path) -> None:
    mend = LESS if ".ckpt" in folder.parts else MEND
    named = {*read_manifest(folder, mend=mend)["files"], MANIFEST}
    strange = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in named)
    if strange:
        raise DamagedArtefact(f"{folder / strange[0]} is not named in {folder / MANIFEST}. Remove it, or run: {mend}")


def _outputs(lock: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Every output of dvc.lock that is here and has no manifest."""
    if not lock.is_file():
        return
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    for out in (out for stage in stages.values() for out in stage.get("outs", [])):
        path = Path(out["path"])
        if path.exists() and not (path / MANIFEST).exists():
            yield path, lambda path=path, wanted=out["md5"]: _check_output(path, wanted)


def _check_output(path: Path, wanted: str) -> None:
    found = dvc_digest(path)
    if found != wanted:
        raise DamagedArtefact(f"{path} is not what dvc.lock says: md5 should be {wanted}, found {found}. Run: {MEND}")


def dvc_digest(path: Path) -> str:
    """The name that DVC gives to what lies at `path`: the md5 of a file, or of a list of a folder's files."""
    return _digest_of_folder(path) if path.is_dir() else _md5_of(path)


def _digest_of_folder(folder: Path) -> str:
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    entries = [{"md5": _md5_of(names[name]), "relpath": name} for name in sorted(names)]
    return f"{_md5(json.dumps(entries, sort_keys=True).encode())}.dir"


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def main() -> None:
    whole, complaints = verify()
    for path in whole:
        print(f"whole: {path}")
    for complaint in complaints:
        print(f"verify: {complaint}", file=sys.stderr)
    if not whole and not complaints:
        print("nothing has been made here yet. Run: make run")
    raise SystemExit(1 if complaints else 0)


if __name__ == "__main__":
    main()
