"""python -m scripts.verify_artifacts: hash every artifact here again and compare.

Folders and checkpoints are compared with their manifests; pages, curves, plots and records, which have none,
with dvc.lock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from flows.dvc.digest import dvc_digest
from thousandwords.core.manifest import MANIFEST, DamagedArtefact, read_manifest

ROOTS = ("data", "models", "results", ".ckpt")
FIX = "dvc checkout, or dvc repro"
FIX_CHECKPOINT = "nothing, an older checkpoint is used; or delete that folder"


def verify(roots: tuple[str, ...] = ROOTS, lock: Path = Path("dvc.lock")) -> tuple[list[Path], list[str]]:
    """(the folders and files that are intact, a sentence for each that is not)."""
    intact, problems = [], []
    for path, check in [*_folders(roots), *_outputs(lock)]:
        try:
            check()
            intact.append(path)
        except (DamagedArtefact, OSError) as error:
            problems.append(str(error))
    return intact, problems


def _folders(roots: tuple[str, ...]) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Every folder with a manifest. A hidden one is left by a save that was killed; the next save removes
    it."""
    for manifest in sorted(path for root in roots for path in Path(root).rglob(MANIFEST)):
        folder = manifest.parent
        if not folder.name.startswith("."):
            yield folder, lambda folder=folder: _check_folder(folder)


def _check_folder(folder: Path) -> None:
    fix = FIX_CHECKPOINT if ".ckpt" in folder.parts else FIX
    names = {*read_manifest(folder, fix=fix)["files"], MANIFEST}
    extra = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in names)
    if extra:
        raise DamagedArtefact(
            f"{folder / extra[0]} is not named in {folder / MANIFEST}. Remove it, or run: {fix}"
        )


def _outputs(lock: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Every output in dvc.lock that exists here and has no manifest."""
    if not lock.is_file():
        return
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    for out in (out for stage in stages.values() for out in stage.get("outs", [])):
        path = Path(out["path"])
        if path.exists() and not (path / MANIFEST).exists():
            yield path, lambda path=path, md5=out["md5"]: _check_output(path, md5)


def _check_output(path: Path, expected_md5: str) -> None:
    md5 = dvc_digest(path)
    if md5 != expected_md5:
        raise DamagedArtefact(
            f"{path} is not what dvc.lock says: md5 should be {expected_md5}, found {md5}. Run: {FIX}"
        )


def main() -> None:
    intact, problems = verify()
    for path in intact:
        print(f"intact: {path}")
    for problem in problems:
        print(f"verify: {problem}", file=sys.stderr)
    if not intact and not problems:
        print("nothing has been made here yet. Run: make run")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
