"""Git commands: the changes of a clone since its last commit, and the commit of an unattended run."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from thousandwords.core.errors import UserError

LOCK, RESULTS = "dvc.lock", "results/"  # what a run writes and git tracks: .gitignore names what of results/
NO_REPOSITORY = "this folder is not a git repository, which DVC needs. Run: git init"
# used where git has no user configured
DEFAULT_IDENTITY = {"user.name": "thousandwords", "user.email": "thousandwords@localhost"}


def git(*args: str, root: Path = Path(".")) -> str:
    """Run git and return its output; raises UserError with git's message if it fails."""
    result = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True)
    if result.returncode:
        message = " ".join((result.stderr or result.stdout).split())
        raise UserError(f"`git {' '.join(args)}` failed with code {result.returncode}: {message}")
    return result.stdout.rstrip("\n")


def git_succeeds(*args: str, root: Path = Path(".")) -> bool:
    return subprocess.run(["git", *args], cwd=root, capture_output=True).returncode == 0


def changed_files(*options: str, root: Path = Path(".")) -> list[str]:
    """Files that differ from the last commit; with "-uno" only files that git tracks."""
    return [line[3:] for line in git("status", "--porcelain", *options, root=root).splitlines()]


def is_run_output(name: str) -> bool:
    """Whether a run writes this file: is_run_output("results/headline.json") -> True"""
    return name == LOCK or name.startswith(RESULTS)


def discard_run_outputs() -> None:
    """Make what runs write, and git tracks, as it is in the last commit."""
    for path in (LOCK, RESULTS):
        if git("ls-tree", "--name-only", "HEAD", path):
            git("checkout", "--quiet", "HEAD", "--", path)
        else:
            git("rm", "--quiet", "-r", "--cached", "--force", "--ignore-unmatch", path)
        git("clean", "-dfq", "--", path)


def commit_if_all(may_commit: Callable[[str], bool], message: str, root: Path = Path(".")) -> str | None:
    """Commit all changes; the commit, None if nothing changed or `may_commit` is false for any file."""
    files = changed_files("-uno", root=root)
    if not files or not all(map(may_commit, files)):
        return None
    missing = [name for name in DEFAULT_IDENTITY if not git_succeeds("config", name, root=root)]
    identity = [f"-c{name}={DEFAULT_IDENTITY[name]}" for name in missing]
    git(*identity, "commit", "--quiet", "-m", message, "--", *files, root=root)
    return git("rev-parse", "--short", "HEAD", root=root)
