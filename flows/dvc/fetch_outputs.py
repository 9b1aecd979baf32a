"""The outputs of a run: a git revision (fetched by DVC), this folder as it is now, or another folder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from flows.dvc.damage import locked_outputs, outputs_of
from flows.dvc.git import git, git_succeeds
from thousandwords.core.errors import UserError

LOCK = "dvc.lock"
WORKSPACE = "workspace"  # as DVC calls it
REQUIRED, OPTIONAL = ("results/samples", "results/ranked"), ("results/metrics.json",)
LIST_RUNS = f"git log --oneline -- {LOCK}"
DVC = (sys.executable, "-m", "dvc")


@dataclass(frozen=True)
class RunOutputs:
    """Where a run comes from.

    `commit` is None for another folder, `lock` is {output: md5} from its dvc.lock.
    """

    name: str
    folder: Path | None  # that holds results/; None: the outputs have to be fetched
    commit: str | None
    description: dict[str, str]  # {"name", "commit", "subject", "date"}, as far as available
    lock: dict[str, str]

    def parts(self) -> dict[str, str]:
        """{model: md5}"""
        return {Path(path).name: md5 for path, md5 in self.lock.items() if path.startswith("models/")}


def find(name: str, root: Path) -> RunOutputs:
    """The run with that name: "workspace", a git revision, or a folder that holds results/.

    Raises UserError.
    """
    if name == WORKSPACE:
        has_commit = git_succeeds("rev-parse", "HEAD", root=root)
        description = _describe(name, "HEAD", root) if has_commit else {"name": name}
        if description.get("subject"):
            description["subject"] = f"this folder as it is now, on top of: {description['subject']}"
        return RunOutputs(name, root, WORKSPACE, description, locked_outputs(root))
    if git_succeeds("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", "--", root=root):
        return _find_revision(name, root)
    if (Path(name) / "results").is_dir():
        return RunOutputs(name, Path(name), None, {"name": name}, locked_outputs(Path(name)))
    raise UserError(
        f"{name!r} is neither a git revision here nor a folder with results/ in it. Give a commit, branch or tag "
        f"(list them: {LIST_RUNS}), {WORKSPACE!r}, or the folder of another run"
    )


def _find_revision(name: str, root: Path) -> RunOutputs:
    if not git_succeeds("cat-file", "-e", f"{name}:./{LOCK}", root=root):
        raise UserError(
            f"{name} has no {LOCK}, so no run was recorded there. Choose a commit that has one: {LIST_RUNS}"
        )
    lock = outputs_of(git("show", f"{name}:./{LOCK}", root=root))
    missing = [path for path in REQUIRED if path not in lock]
    if missing:
        raise UserError(
            f"the {LOCK} of {name} has no {missing[0]}: that run did not get so far. Choose another one: {LIST_RUNS}"
        )
    commit = git("rev-parse", f"{name}^{{commit}}", root=root)
    return RunOutputs(name, None, commit, _describe(name, name, root), lock)


def _describe(name: str, revision: str, root: Path) -> dict[str, str]:
    commit, date, subject = git("log", "-1", "--format=%h%n%cs%n%s", revision, "--", root=root).split("\n", 2)
    return {"name": name, "commit": commit, "date": date, "subject": subject}


def fetch(run: RunOutputs, target: Path, root: Path) -> Path:
    """The folder that holds the run's results/: its own, or `target`, filled from DVC's cache or remote.

    Raises UserError.
    """
    if run.folder is not None:
        return run.folder
    for path in (*REQUIRED, *(path for path in OPTIONAL if path in run.lock)):
        out = target / path
        out.parent.mkdir(parents=True, exist_ok=True)
        args = ("get", str(root.resolve()), path, "--rev", run.commit, "--out", str(out.resolve()))
        result = subprocess.run([*DVC, *args], cwd=root, capture_output=True, text=True)
        if result.returncode:
            raise UserError(
                f"{path} of {run.name} is neither in DVC's cache nor in its remote. With a remote, run: dvc fetch "
                f"--all-commits {' '.join(REQUIRED)}; else make that run again: git checkout "
                f"{run.description['commit']}, make run. DVC said: {_last_error(result.stderr)}"
            )
    return target


def _last_error(output: str) -> str:
    """The last line that DVC marks as an error."""
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    return (errors or output.splitlines() or ["nothing"])[-1]
