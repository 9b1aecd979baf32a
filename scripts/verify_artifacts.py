"""python -m scripts.verify_artifacts [--repair]: hash every artifact here again and compare.

Folders and checkpoints are compared with their manifests; pages, curves and plots, which have none,
and DVC's cache with dvc.lock. With --repair the damaged outputs are removed, here and in the cache.
"""

import sys
from pathlib import Path

from flows.command_line import one_sentence, parser
from flows.dvc.damage import Damage, discard, dvc_digest, find_damage, locked_outputs, object_in_cache
from thousandwords.core.manifest import MANIFEST, DamagedArtefact, read_manifest

ROOTS = ("data", "models", "results", ".ckpt")
FIX = "make repair"
FIX_CHECKPOINT = "nothing, an older checkpoint is used; or delete that folder"


def verify(roots: tuple[str, ...] = ROOTS) -> tuple[list[Path], list[str]]:
    """(the folders and files that are intact, a sentence for each that is not)."""
    outputs = {Path(name): md5 for name, md5 in locked_outputs().items()}
    here = {path: md5 for path, md5 in outputs.items() if path.exists() and not (path / MANIFEST).exists()}
    intact, problems = [], []
    for path, expected in [*((folder, None) for folder in _folders(roots)), *here.items()]:
        try:
            if expected is None:
                _check_folder(path)
            elif (found := dvc_digest(path)) != expected:
                difference = f"md5 should be {expected}, found {found}"
                raise DamagedArtefact(f"{path} is not what dvc.lock says: {difference}. Run: {FIX}")
            intact.append(path)
        except (DamagedArtefact, OSError) as error:
            problems.append(str(error))
    return intact, problems


def repair() -> list[Damage]:
    """Remove every output that is damaged, here and in the cache; returns what was removed."""
    damages = find_damage()
    outs = {Path(path): md5 for path, md5 in locked_outputs().items() if Path(path, MANIFEST).exists()}
    for folder in _folders(ROOTS):
        out = next((out for out in outs if folder.is_relative_to(out)), None)
        if out and not any(damage.output == out for damage in damages):
            try:
                _check_folder(folder)
            except DamagedArtefact as error:  # it was damaged before DVC hashed it
                copies = (out, object_in_cache(outs[out]))
                damages += [Damage(out, path, outs[out], str(error)) for path in copies]
    discard(damages)
    return damages


def _folders(roots: tuple[str, ...]) -> list[Path]:
    """Every folder with a manifest. A hidden one is left by a save that was killed; the next save removes it."""
    folders = (manifest.parent for root in roots for manifest in Path(root).rglob(MANIFEST))
    return sorted(folder for folder in folders if not folder.name.startswith("."))


def _check_folder(folder: Path) -> None:
    fix = FIX_CHECKPOINT if ".ckpt" in folder.parts else FIX
    names = {*read_manifest(folder, fix=fix)["files"], MANIFEST}
    if extra := sorted(path for path in folder.iterdir() if path.is_file() and path.name not in names):
        raise DamagedArtefact(f"{extra[0]} is not named in {folder / MANIFEST}. Remove it, or run: {fix}")


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repair", action="store_true", help="remove what is damaged, also in the cache")
    options = arguments.parse_args(argv)
    with one_sentence("verify", code=2):
        if options.repair:
            print("\n".join(f"repaired: {damage}" for damage in repair()) or "nothing is damaged")
            return
        intact, problems = verify()
        in_cache = [damage for damage in find_damage() if not damage.path.is_relative_to(damage.output)]
        problems += [f"{damage}. Run: {FIX}" for damage in in_cache]
        for path in intact:
            print(f"intact: {path}")
        for problem in problems:
            print(f"verify: {problem}", file=sys.stderr)
        if not intact and not problems:
            print("nothing has been made here yet. Run: make run")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
