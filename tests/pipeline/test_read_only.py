"""A project that may not be written: each command that writes says so in one sentence, before long work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.prefect_server import environment, tiny_project

MOUNT = 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$@"'


def run_read_only(project: Path, *args: str) -> subprocess.CompletedProcess:
    """`python -m ARGS` in the project, mounted read-only for this process; its home of Prefect is in it."""
    mounted = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", sys.executable, "-m", *args]
    settings = environment(
        project / ".prefect", PREFECT_API_URL="http://127.0.0.1:9/api", SERVERS_FOLDER=".servers"
    )
    return subprocess.run(mounted, cwd=project, env=settings, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    project = tiny_project(tmp_path_factory.mktemp("project"), {"first": {"cmd": "true"}})
    (project / ".dvc/tmp").mkdir()
    return project


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a folder read-only")
@pytest.mark.parametrize(
    "command",
    [
        ["flows.run_local"],
        pytest.param(["flows.pipeline"], marks=pytest.mark.slow),
        pytest.param(["flows.nightly"], marks=pytest.mark.slow),
        pytest.param(["flows.fleet"], marks=pytest.mark.slow),
        pytest.param(["flows.sweep", "seed=1,2"], marks=pytest.mark.slow),
        pytest.param(["flows.generate", "a star"], marks=pytest.mark.slow),
        ["flows.registry", "register"],
        ["flows.services", "start"],
        pytest.param(["flows.workers", "start"], marks=pytest.mark.slow),
        ["flows.dvc.repair"],
        ["studio"],
    ],
    ids=" ".join,
)
def test_a_command_that_writes_ends_with_one_sentence_in_a_read_only_project(project, command):
    result = run_read_only(project, *command)
    sentence = "cannot be written: Read-only file system. Mount it for writing, or use another folder"
    assert result.returncode in (1, 2) and result.stdout == ""
    assert sentence in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a folder read-only")
def test_the_status_of_a_read_only_project_is_shown(project):
    result = run_read_only(project, "flows.status")
    assert result.returncode == 0 and result.stderr == ""
    assert "unknown: .dvc/tmp cannot be written: Read-only file system." in result.stdout
