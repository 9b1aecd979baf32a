"""The files of the project: what git tracks, and what is new and not ignored."""

import subprocess

import pytest

from tests.helpers.paths import ROOT


def tracked(*patterns: str) -> list[str]:
    """Their names, relative to the root; the test skips outside a git checkout."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return sorted({name for name in listed.stdout.splitlines() if (ROOT / name).is_file()})
