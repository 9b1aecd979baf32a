"""python -m flows.compare A B [--out results/compare.html | --sheet results/sheet.html]: two runs, side by side.

A and B are git revisions, "workspace" (this folder as it stands) or other folders with results/ in them. As a page, with figures,
settings and pictures of the same prompts; or, with --sheet, as a sheet for people to vote on, who do not see which is which.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from flows._outputs import DVC, OLDER, Outputs, fetch, find
from thousandwords.errors import UserError

PAGE = Path("results/compare.html")


def compare(names: tuple[str, str], words: list[str], root: Path = Path(".")) -> int:
    """Hands both runs and what git and DVC know of them to `python -m thousandwords` with `words`; its code. Raises UserError."""
    a, b = (find(name, root) for name in names)
    if a.commit is not None and a.commit == b.commit:
        raise UserError(f"{a.name} and {b.name} are the same run: there is nothing to compare. Choose another one: {OLDER}")
    with tempfile.TemporaryDirectory() as folder:
        folders = [fetch(run, Path(folder) / side, root) for run, side in ((a, "a"), (b, "b"))]
        told = Path(folder) / "told.json"
        told.write_text(json.dumps(told_of(a, b, root, words[0] == "compare")), encoding="utf-8")
        runs = ["--a", str(folders[0]), "--b", str(folders[1]), "--told", str(told)]
        return subprocess.run([sys.executable, "-m", "thousandwords", words[0], *runs, *words[1:]], cwd=root).returncode


def told_of(a: Outputs, b: Outputs, root: Path, with_differences: bool = True) -> dict:
    """What is known of both besides pictures and figures, as `thousandwords.comparison.compare` takes it."""
    same = sorted(set(a.parts().items()) & set(b.parts().items()))
    told = {"a": a.told, "b": b.told, "same_parts": [part for part, _ in same]}
    if with_differences and a.commit and b.commit:
        told |= {kind: differences(kind, a.commit, b.commit, root) for kind in ("metrics", "params")}
    return told


def differences(kind: str, a: str, b: str, root: Path) -> dict[str, dict]:
    """{name: {"old", "new", "diff"}} of what differs in "metrics" or "params", as DVC tells it. Raises UserError."""
    done = subprocess.run([*DVC, "--wait-for-lock", kind, "diff", "--json", a, b], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`dvc {kind} diff {a} {b}` failed with code {done.returncode}: {' '.join(done.stderr.split())}")
    return {name: row for file in json.loads(done.stdout).values() for name, row in file.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="a commit, a branch, a tag, workspace, or a folder")
    parser.add_argument("b", metavar="B", help="likewise")
    parser.add_argument("--out", type=Path, default=PAGE, help=f"the page (default: {PAGE})")
    parser.add_argument("--sheet", type=Path, help="a sheet for a blind vote in the place of the page")
    parser.add_argument("--prompts", type=int, help="prompts on it (default: 48 on a page, 50 on a sheet)")
    options = parser.parse_args(argv)
    words = ["sheet", "--out", str(options.sheet)] if options.sheet else ["compare", "--out", str(options.out)]
    try:
        code = compare((options.a, options.b), words + (["--prompts", str(options.prompts)] if options.prompts else []))
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


if __name__ == "__main__":
    main()
