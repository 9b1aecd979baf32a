"""Commands in a project that may not be written, and commands whose output is no longer read (`command | head -1`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import environment, tiny_project

MOUNT = 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$@"'
METRICS = {
    "reconstruction": {"psnr_hard": 1, "psnr_kmeans": 1},
    "codebook": {"perplexity": 1, "perplexity_kmeans": 1, "used": 1, "vocab_size": 2},
    "generator": {"val_loss_image": 1, "val_loss_text": 1},
    "clip_score": {"n1": 1, "best": 1},
    "fidelity": {},
    "verdicts": {},
    "held_out_pairs": 100,
    "n": 1,
}
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a folder read-only")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    project = tiny_project(tmp_path_factory.mktemp("project"), {"first": {"cmd": "true"}})
    (project / ".dvc/tmp").mkdir()
    (project / "results").mkdir()
    (project / "results/metrics.json").write_text(json.dumps(METRICS))
    (project / "presets").symlink_to(ROOT / "presets")
    (project / "params.yaml").write_text("seed: 0\n")
    return project


def run(project: Path, *command: str, **pipes: int) -> subprocess.CompletedProcess:
    """Run the command; its home of Prefect is in the project."""
    servers = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "SERVERS_FOLDER": ".servers"}
    own = environment(project / ".prefect", **servers)
    return subprocess.run(
        command, cwd=project, env=own, stderr=subprocess.PIPE, text=True, timeout=120, **pipes
    )


def run_read_only(project: Path, *args: str) -> subprocess.CompletedProcess:
    """`python -m ARGS` in the project, mounted read-only for this process."""
    mounted = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", sys.executable, "-m", *args]
    return run(project, *mounted, stdout=subprocess.PIPE)


@only_root
@pytest.mark.parametrize(
    "command",
    [
        ["flows.run_local"],
        pytest.param(["flows.pipeline"], marks=slow),
        pytest.param(["flows.nightly"], marks=slow),
        pytest.param(["flows.fleet"], marks=slow),
        pytest.param(["flows.sweep", "seed=1,2"], marks=slow),
        pytest.param(["flows.generate", "a star"], marks=slow),
        ["flows.registry", "register"],
        ["flows.services", "start"],
        pytest.param(["flows.workers", "start"], marks=slow),
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


@only_root
def test_the_status_of_a_read_only_project_is_shown(project):
    result = run_read_only(project, "flows.status")
    assert result.returncode == 0 and result.stderr == ""
    assert "unknown: .dvc/tmp cannot be written: Read-only file system." in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["scripts.print_run_summary"],
        ["scripts.verify_artifacts"],
        ["scripts.use_preset", "smoke"],
        ["flows.run_local"],
    ],
    ids=" ".join,
)
def test_a_command_whose_output_is_no_longer_read_ends_without_a_word(project, command):
    reader, writer = os.pipe()
    os.close(reader)
    result = run(project, sys.executable, "-m", *command, stdout=writer)
    os.close(writer)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("first")]  # the run's stage
    assert (result.returncode, lines) == (0, [])
