"""python -m stages._verify: re-hashes every artefact of this project against its manifest."""
from __future__ import annotations

import sys
from pathlib import Path

from thousandwords.files import MANIFEST, DamagedArtefact, read_manifest

ROOTS = ("data", "models", "results")


def verify(roots: tuple[str, ...] = ROOTS) -> tuple[list[Path], list[str]]:
    """(the folders that are whole, a sentence for each that is not)."""
    whole, complaints = [], []
    for manifest in sorted(path for root in roots for path in Path(root).rglob(MANIFEST)):
        try:
            read_manifest(manifest.parent)
            whole.append(manifest.parent)
        except DamagedArtefact as error:
            complaints.append(str(error))
    return whole, complaints


def main() -> None:
    whole, complaints = verify()
    for folder in whole:
        print(f"whole: {folder}")
    for complaint in complaints:
        print(f"verify: {complaint}", file=sys.stderr)
    if not whole and not complaints:
        print("nothing has been made here yet. Run: make run")
    raise SystemExit(1 if complaints else 0)


if __name__ == "__main__":
    main()
