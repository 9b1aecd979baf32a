"""What a clone has that its last commit has not, and how a run that nobody watches records what it made."""
from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from thousandwords.errors import UserError

NOBODY = {"user.name": "thousandwords", "user.email": "thousandwords@localhost"}  # where git knows nobody's name


def git(*words: str, root: Path = Path(".")) -> str:
    """What git says; raises UserError with its own words where it refuses."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"`git {' '.join(words)}` failed with code {done.returncode}: {said}")
    return done.stdout.rstrip("\n")


def is_known(*words: str, root: Path = Path(".")) -> bool:
    """Whether git answers at all."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True).returncode == 0


def changes(*options: str, root: Path = Path(".")) -> list[str]:
    """The files that are not as they were committed; with "-uno" only those that git has ever seen."""
    return [line[3:] for line in git("status", "--porcelain", *options, root=root).splitlines()]


def commit_all_of(is_ours: Callable[[str], bool], message: str, root: Path = Path(".")) -> str | None:
    """Commits what has changed and returns the commit; None where nothing has, or something that is not ours to commit."""
    changed = changes("-uno", root=root)
    if not changed or not all(map(is_ours, changed)):
        return None
    missing = [f"-c{name}={value}" for name, value in NOBODY.items() if not is_known("config", name, root=root)]
    git(*missing, "commit", "--quiet", "-m", message, "--", *changed, root=root)
    return git("rev-parse", "--short", "HEAD", root=root)
