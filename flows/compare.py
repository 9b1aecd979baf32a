"""python -m flows.compare A B [--out results/compare.html | --sheet results/sheet.html]: compare two runs.

A and B are git revisions, "workspace" (this folder as it is now) or other folders with results/ in them. The
output is a page with metrics, settings and images of the same prompts; or, with --sheet, a human evaluation
sheet, on which people vote without knowing which run is which.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from flows.command_line import one_sentence, parser
from flows.dvc.fetch_outputs import DVC, LIST_RUNS, RunOutputs, fetch, find
from thousandwords.core.errors import UserError

PAGE = Path("results/compare.html")


def compare(names: tuple[str, str], command: list[str], root: Path = Path(".")) -> int:
    """Run `python -m thousandwords COMMAND` on both runs and their metadata; its exit code.

    Raises UserError.
    """
    a, b = (find(name, root) for name in names)
    if a.commit is not None and a.commit == b.commit:
        raise UserError(
            f"{a.name} and {b.name} are the same run: there is nothing to compare. Choose another one: {LIST_RUNS}"
        )
    with tempfile.TemporaryDirectory() as folder:
        folders = [fetch(run, Path(folder) / side, root) for run, side in ((a, "a"), (b, "b"))]
        metadata = Path(folder) / "metadata.json"
        metadata.write_text(json.dumps(describe_runs(a, b, root, command[0] == "compare")), encoding="utf-8")
        runs = ["--a", str(folders[0]), "--b", str(folders[1]), "--metadata", str(metadata)]
        return subprocess.run(
            [sys.executable, "-m", "thousandwords", command[0], *runs, *command[1:]], cwd=root
        ).returncode


def describe_runs(a: RunOutputs, b: RunOutputs, root: Path, with_differences: bool = True) -> dict:
    """The metadata of both runs, as `thousandwords.reporting.comparison.compare` takes it."""
    same_parts = sorted(set(a.parts().items()) & set(b.parts().items()))
    metadata = {"a": a.description, "b": b.description, "same_parts": [part for part, _ in same_parts]}
    if with_differences and a.commit and b.commit:
        metadata |= {kind: differences(kind, a.commit, b.commit, root) for kind in ("metrics", "params")}
    return metadata


def differences(kind: str, a: str, b: str, root: Path) -> dict[str, dict]:
    """{name: {"old", "new", "diff"}} of changed "metrics" or "params", from DVC. Raises UserError."""
    result = subprocess.run(
        [*DVC, "--wait-for-lock", kind, "diff", "--json", a, b], cwd=root, capture_output=True, text=True
    )
    if result.returncode:
        raise UserError(
            f"`dvc {kind} diff {a} {b}` failed with code {result.returncode}: {' '.join(result.stderr.split())}"
        )
    return {name: row for file in json.loads(result.stdout).values() for name, row in file.items()}


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("a", metavar="A", help="a commit, a branch, a tag, workspace, or a folder")
    arguments.add_argument("b", metavar="B", help="likewise")
    arguments.add_argument("--out", type=Path, default=PAGE, help=f"the page (default: {PAGE})")
    arguments.add_argument("--sheet", type=Path, help="write a human evaluation sheet instead of the page")
    arguments.add_argument("--prompts", type=int, help="prompts on it (default: 48 on a page, 50 on a sheet)")
    options = arguments.parse_args(argv)
    command = (
        ["human-eval-sheet", "--out", str(options.sheet)]
        if options.sheet
        else ["compare", "--out", str(options.out)]
    )
    if options.prompts:
        command += ["--prompts", str(options.prompts)]
    with one_sentence("compare", code=2):
        raise SystemExit(compare((options.a, options.b), command))


if __name__ == "__main__":
    main()
