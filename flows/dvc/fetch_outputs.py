"""The outputs of a run, wherever it is: of a git revision (by DVC), of this folder as it stands, of another folder."""
from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows._git import git, is_known
from thousandwords.errors import UserError

LOCK = "dvc.lock"
WORKSPACE = "workspace"  # as DVC calls it
NEEDED, WISHED = ("results/samples", "results/ranked"), ("results/metrics.json",)
OLDER = f"git log --oneline -- {LOCK}"
DVC = (sys.executable, "-m", "dvc")


@dataclass(frozen=True)
class Outputs:
    """Where a run is known from; `commit` is None for a folder that is not this one, `lock` {output: md5} as dvc.lock has it."""

    name: str
    folder: Path | None  # that holds results/; None: they have to be fetched
    commit: str | None
    told: dict[str, str]  # {"name", "commit", "subject", "date"}, as far as known
    lock: dict[str, str]

    def parts(self) -> dict[str, str]:
        """{model: md5}"""
        return {Path(path).name: md5 for path, md5 in self.lock.items() if path.startswith("models/")}


def find(name: str, root: Path) -> Outputs:
    """The run that goes by that name: "workspace", a git revision, or a folder that holds results/. Raises UserError."""
    if name == WORKSPACE:
        told = _told(name, "HEAD", root) if is_known("rev-parse", "HEAD", root=root) else {"name": name}
        if told.get("subject"):
            told["subject"] = f"this folder as it stands, on top of: {told['subject']}"
        return Outputs(name, root, WORKSPACE, told, _outs_of(root / LOCK))
    if is_known("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", "--", root=root):
        return _revision(name, root)
    if (Path(name) / "results").is_dir():
        return Outputs(name, Path(name), None, {"name": name}, _outs_of(Path(name) / LOCK))
    raise UserError(
        f"{name!r} is no git revision here, and no folder with results/ in it. Give a commit, branch or tag (see them: {OLDER}), "
        f"{WORKSPACE!r}, or the folder of another run"
    )


def _revision(name: str, root: Path) -> Outputs:
    if not is_known("cat-file", "-e", f"{name}:./{LOCK}", root=root):
        raise UserError(f"{name} has no {LOCK}, so no run was recorded there. Choose one that has: {OLDER}")
    lock = _outs(yaml.safe_load(git("show", f"{name}:./{LOCK}", root=root)))
    missing = [path for path in NEEDED if path not in lock]
    if missing:
        raise UserError(f"the {LOCK} of {name} knows of no {missing[0]}: its run never came so far. Choose another one: {OLDER}")
    return Outputs(name, None, git("rev-parse", f"{name}^{{commit}}", root=root), _told(name, name, root), lock)


def _told(name: str, revision: str, root: Path) -> dict[str, str]:
    commit, date, subject = git("log", "-1", "--format=%h%n%cs%n%s", revision, "--", root=root).split("\n", 2)
    return {"name": name, "commit": commit, "date": date, "subject": subject}


def _outs_of(path: Path) -> dict[str, str]:
    return _outs(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _outs(lock: dict | None) -> dict[str, str]:
    """{output: md5} of a dvc.lock."""
    stages = (lock or {}).get("stages", {}).values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def fetch(run: Outputs, into: Path, root: Path) -> Path:
    """The folder that holds the run's results/: its own, or `into`, filled from DVC's cache or remote. Raises UserError."""
    if run.folder is not None:
        return run.folder
    for path in (*NEEDED, *(path for path in WISHED if path in run.lock)):
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        words = ("get", str(root.resolve()), path, "--rev", run.commit, "--out", str((into / path).resolve()))
        done = subprocess.run([*DVC, *words], cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise UserError(
                f"{path} of {run.name} is neither in DVC's cache nor in its remote. With a remote, run: dvc fetch --all-commits "
                f"{' '.join(NEEDED)}; else make that run again: git checkout {run.told['commit']}, make run. DVC said: "
                f"{_last_error(done.stderr)}"
            )
    return into


def _last_error(said: str) -> str:
    """The last thing that DVC called an error, in a line."""
    errors = [line for line in said.splitlines() if line.startswith("ERROR")]
    return (errors or said.splitlines() or ["nothing"])[-1]
