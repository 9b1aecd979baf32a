"""`command | head -1`: a command whose output is no longer read ends without a word."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.prefect_server import environment, tiny_project

METRICS = """{"reconstruction": {"psnr_hard": 1, "psnr_kmeans": 1}, "clip_score": {"n1": 1, "best": 1}, "n": 1,
 "codebook": {"perplexity": 1, "perplexity_kmeans": 1, "used": 1, "vocab_size": 2}, "seconds": {},
 "generator": {"val_loss_image": 1, "val_loss_text": 1}}"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = tiny_project(tmp_path_factory.mktemp("project"), {"first": {"cmd": "true"}})
    (project / "results").mkdir()
    (project / "results/metrics.json").write_text(METRICS)
    (project / "presets").symlink_to(ROOT / "presets")
    (project / "params.yaml").write_text("seed: 0\n")
    return project


def run_unread(project, *args: str) -> subprocess.CompletedProcess:
    """`python -m ARGS`, its output a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        settings = environment(project / ".prefect")
        command = [sys.executable, "-m", *args]
        return subprocess.run(
            command, cwd=project, env=settings, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    "command",
    [
        ["scripts.print_run_summary"],
        ["scripts.verify_artifacts"],
        ["scripts.use_preset", "smoke"],
        ["flows.workers", "list"],
        ["flows.run_local"],
    ],
    ids=" ".join,
)
def test_a_command_ends_without_a_word(project, command):
    result = run_unread(project, *command)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("first")]  # the run's stage
    assert (result.returncode, lines) == (0, [])
