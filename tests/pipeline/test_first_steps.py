"""Before anything was trained: the command, and the notebook of docs/, with the example model."""

import json
import subprocess
import sys

from tests.helpers.paths import ROOT
from thousandwords.api import read_image
from thousandwords.scenes.parse import match_caption

PROMPT = "a small red star above a large blue square"
NOTEBOOK = ROOT / "docs/first-steps.ipynb"


def python(folder, *arguments: str) -> subprocess.CompletedProcess:
    """Python with the library, in a folder with nothing of this project."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=folder, env=own, capture_output=True, text=True
    )


def test_the_command_follows_the_caption_and_says_which_model_answers(tmp_path):
    done = python(tmp_path, "-m", "thousandwords", "generate", PROMPT, "-n", "4", "--out", "out")
    assert done.stderr.startswith("generate: there is no models/package here, so the example model answers")
    (best,) = tmp_path.glob("out/*/000.png")
    assert all(match_caption(read_image(best), PROMPT).values())


def test_the_notebook_runs_and_prints_what_it_shows(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n".join("".join(cell["source"]) for cell in cells))
    done = python(tmp_path, "cells.py")
    outputs = [output for cell in cells for output in cell["outputs"]]
    shown = "".join(line for output in outputs for line in output.get("text", []))
    assert done.stdout.splitlines()[1:9] == shown.splitlines()[1:9], done.stderr  # the tokens of an image
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
