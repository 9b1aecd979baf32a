"""python -m flows.compare A B [--out results/compare.html | --sheet results/sheet.html]: compare two runs.

A and B are git revisions, "workspace" (this folder as it is now) or other folders with results/ in them. The
output is a page with metrics, settings and images of the same prompts; or, with --sheet, a human evaluation
sheet, on which people vote without knowing which run is which.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flows.command_line import one_sentence, parser
from flows.dvc.damage import LOCK, locked_outputs, outputs_of
from flows.dvc.git import NO_REPOSITORY, git, git_succeeds
from flows.dvc.repro import DVC
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_bytes

PAGE = Path("results/compare.html")
WORKSPACE = "workspace"  # as DVC calls it
IMAGES, METRICS = ("results/samples", "results/ranked"), "results/metrics.json"
IN_GIT = ("results/headline.json", "results/prompts.csv")
LIST_RUNS = f"git log --oneline -- {LOCK}"


@dataclass(frozen=True)
class RunOutputs:
    """Where a run comes from; `commit` is None for another folder, `lock` {output: md5} of its dvc.lock."""

    name: str
    folder: Path | None  # that holds results/; None: the outputs have to be fetched
    commit: str | None
    description: dict[str, str]  # {"name", "commit", "subject", "date"}, as far as available
    lock: dict[str, str]


def compare(names: tuple[str, str], command: list[str], root: Path = Path(".")) -> int:
    """Run `python -m thousandwords COMMAND` on both runs; its exit code. Raises UserError."""
    a, b = (find(name, root) for name in names)
    if a.commit is not None and a.commit == b.commit:
        found = f"{a.name} and {b.name} are the same run: there is nothing to compare"
        raise UserError(f"{found}. Choose another one: {LIST_RUNS}")
    is_page = command[0] == "compare"
    with tempfile.TemporaryDirectory() as folder:
        folders = [fetch(run, Path(folder) / side, root, is_page) for run, side in ((a, "a"), (b, "b"))]
        metadata = Path(folder) / "metadata.json"
        metadata.write_text(json.dumps(describe_runs(a, b, root, is_page)), encoding="utf-8")
        runs = ["--a", str(folders[0]), "--b", str(folders[1]), "--metadata", str(metadata)]
        line = [sys.executable, "-m", "thousandwords", command[0], *runs, *command[1:]]
        return subprocess.run(line, cwd=root).returncode


def describe_runs(a: RunOutputs, b: RunOutputs, root: Path, with_params: bool = True) -> dict:
    """The metadata of both runs, as `thousandwords.reporting.comparison.compare` takes it. Raises UserError."""
    same = [path for path, md5 in sorted(a.lock.items()) if b.lock.get(path) == md5]
    parts = [Path(path).name for path in same if path.startswith("models/")]
    metadata = {"a": a.description, "b": b.description, "same_parts": parts}
    if with_params and a.commit and b.commit:
        command = [*DVC, "--wait-for-lock", "params", "diff", "--json", a.commit, b.commit]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if result.returncode:
            line, reason = f"dvc params diff {a.commit} {b.commit}", " ".join(result.stderr.split())
            raise UserError(f"`{line}` failed with code {result.returncode}: {reason}")
        files = json.loads(result.stdout).values()  # {name: {"old", "new", "diff"}} of each
        metadata["params"] = {name: row for file in files for name, row in file.items()}
    return metadata


def find(name: str, root: Path) -> RunOutputs:
    """The run named "workspace", a git revision, or a folder that holds results/. Raises UserError."""
    if name == WORKSPACE:
        has_commit = git_succeeds("rev-parse", "HEAD", root=root)
        description = _describe(name, "HEAD", root) if has_commit else {"name": name}
        if description.get("subject"):
            description["subject"] = f"this folder as it is now, on top of: {description['subject']}"
        return RunOutputs(name, root, WORKSPACE, description, locked_outputs(root))
    if not git_succeeds("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", "--", root=root):
        if (Path(name) / "results").is_dir():
            return RunOutputs(name, Path(name), None, {"name": name}, locked_outputs(Path(name)))
        if not git_succeeds("rev-parse", "--git-dir", root=root):
            raise UserError(f"{name!r} is not a folder with results/ in it, and {NO_REPOSITORY}")
        raise UserError(
            f"{name!r} is neither a git revision here nor a folder with results/ in it. Give a commit, branch or tag "
            f"(list them: {LIST_RUNS}), {WORKSPACE!r}, or the folder of another run"
        )
    if not git_succeeds("cat-file", "-e", f"{name}:./{LOCK}", root=root):
        found = f"{name} has no {LOCK}, so no run was recorded there"
        raise UserError(f"{found}. Choose a commit that has one: {LIST_RUNS}")
    lock = outputs_of(git("show", f"{name}:./{LOCK}", root=root))
    if missing := [path for path in IMAGES if path not in lock]:
        found = f"the {LOCK} of {name} has no {missing[0]}: that run did not get so far"
        raise UserError(f"{found}. Choose another one: {LIST_RUNS}")
    commit = git("rev-parse", f"{name}^{{commit}}", root=root)
    return RunOutputs(name, None, commit, _describe(name, name, root), lock)


def _describe(name: str, revision: str, root: Path) -> dict[str, str]:
    commit, date, subject = git("log", "-1", "--format=%h%n%cs%n%s", revision, "--", root=root).split("\n", 2)
    return {"name": name, "commit": commit, "date": date, "subject": subject}


def fetch(run: RunOutputs, target: Path, root: Path, is_page: bool = True) -> Path:
    """The folder with the run's results/: its own, or `target`, filled by git and DVC. For a page, what git has is
    enough. Raises UserError."""
    if run.folder is not None:
        return run.folder
    in_git = [path for path in IN_GIT if git_succeeds("cat-file", "-e", f"{run.commit}:./{path}", root=root)]
    for path in in_git:
        write_bytes(target / path, git("show", f"{run.commit}:./{path}", root=root).encode())
    for path in (*IMAGES, *([METRICS] if METRICS in run.lock else [])):
        out = (target / path).resolve()
        args = ("get", str(root.resolve()), path, "--rev", run.commit, "--out", str(out))
        result = subprocess.run([*DVC, *args], cwd=root, capture_output=True, text=True)
        if not result.returncode:
            continue
        missing = f"{path} of {run.name} is neither in DVC's cache nor in its remote"
        if is_page and IN_GIT[0] in in_git:
            print(f"{missing}: its figures are compared, without images", file=sys.stderr, flush=True)
            for fetched in IMAGES:
                shutil.rmtree(target / fetched, ignore_errors=True)
            break
        lines = result.stderr.splitlines() or ["nothing"]
        raise UserError(
            f"{missing}. With a remote, run: dvc fetch --all-commits {' '.join(IMAGES)}; else make that run again: "
            f"git checkout {run.description['commit']}, make run. DVC said: "
            f"{([line for line in lines if line.startswith('ERROR')] or lines)[-1]}"
        )
    return target


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("a", metavar="A", help="a commit, a branch, a tag, workspace, or a folder")
    arguments.add_argument("b", metavar="B", help="likewise")
    arguments.add_argument("--out", type=Path, default=PAGE, help=f"the page (default: {PAGE})")
    arguments.add_argument("--sheet", type=Path, help="write a human evaluation sheet instead of the page")
    arguments.add_argument("--prompts", type=int, help="prompts on it (default: 48 on a page, 50 on a sheet)")
    options = arguments.parse_args(argv)
    command = ["human-eval-sheet" if options.sheet else "compare", "--out", str(options.sheet or options.out)]
    if options.prompts:
        command += ["--prompts", str(options.prompts)]
    with one_sentence("compare", code=2):
        raise SystemExit(compare((options.a, options.b), command))


if __name__ == "__main__":
    main()
