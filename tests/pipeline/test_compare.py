"""make compare: runs named by revisions, by "workspace" or by folders; their metadata from DVC; what cannot be compared."""

import json
import re
import shutil

import pytest
import yaml

from flows import compare
from flows.compare import fetch, find
from tests.helpers.clones import command, must
from tests.helpers.paths import ROOT
from tests.helpers.two_runs import BETTER, METRICS, write_run
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.evaluation.headline import headline

CAPTIONS = ["a cat", "a hill", "a red star"]
STAGE = {
    "cmd": "mkdir -p results models && echo same > models/scorer && cp -r made/results/. results",
    "deps": ["made"],
    "params": ["steps"],
    "outs": ["results/samples", "results/ranked", "models/scorer"],
    "metrics": ["results/metrics.json", {"results/headline.json": {"cache": False}}],
}


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Four commits: no run, a first run, a better one ("longer"), and one whose outputs are in no cache ("lost")."""
    root = tmp_path_factory.mktemp("history") / "project"
    root.mkdir()
    for arguments in (("git", "init", "-q", "-b", "main"), ("dvc", "init", "-q")):
        must(root, *arguments)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": STAGE}}))
    (root / ".gitignore").write_text("/made\n/results/*\n!/results/headline.json\n/models\n/page*\n")
    commit(root, "Begin")
    runs = ((10, 10, METRICS, "A first run"), (20, 100, BETTER, "Train twice as long"))
    for steps, gray, metrics, subject in runs:
        shutil.rmtree(root / "made", ignore_errors=True)
        write_run(root / "made", CAPTIONS, gray, metrics)
        write_json(root / "made/results/headline.json", headline(metrics))
        (root / "params.yaml").write_text(f"steps: {steps}\n")
        must(root, "dvc", "repro", "-q")
        commit(root, subject)
    must(root, "git", "tag", "longer")
    text = (root / "dvc.lock").read_text()
    outs = {out["path"]: out["md5"] for out in yaml.safe_load(text)["stages"]["evaluate"]["outs"]}
    (root / "dvc.lock").write_text(text.replace(outs["results/samples"], "0" * 32 + ".dir"))
    commit(root, "Lose the images")
    must(root, "git", "tag", "lost")
    must(root, "git", "checkout", "-q", "longer")
    return root


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """Commands in the other project use the library of this one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def commit(root, subject: str) -> None:
    must(root, "git", "add", "-A")
    must(root, "git", "commit", "-qm", subject)


def test_a_revision_is_compared_with_the_workspace_with_all_metadata_of_git_and_dvc(history, capfd):
    code = compare.compare(("longer~1", "workspace"), ["compare", "--out", "page.html"], history)

    page, output = (history / "page.html").read_text(), capfd.readouterr().out
    assert code == 0 and "longer~1" in page and "A first run" in page
    assert "this folder as it is now, on top of: Train twice as long" in page and "<code>steps</code>" in page
    assert "+0.100  better" in output  # dvc.lock says that the scorer is the same
    assert "3 prompts in common" in output
    assert "seconds.evaluate" in page and "3 prompts are in both runs" in page


def test_the_metadata_have_the_differences_of_dvc(history):
    metadata = compare.describe_runs(find("longer~1", history), find("longer", history), history)

    assert metadata["params"] == {"steps": {"old": 10, "new": 20, "diff": 10}}
    assert metadata["same_parts"] == ["scorer"]
    assert metadata["a"]["subject"] == "A first run"
    assert metadata["a"]["commit"] == must(history, "git", "rev-parse", "--short", "longer~1").strip()


def test_a_folder_of_another_run_is_used_in_place(history, tmp_path):
    folder = write_run(tmp_path / "other", CAPTIONS, 7)

    run = find(str(folder), history)

    assert fetch(run, tmp_path / "unused", history) == folder and not (tmp_path / "unused").exists()
    assert "params" not in compare.describe_runs(run, find("workspace", history), history)


def test_a_human_evaluation_sheet_compares_the_same_runs(history, capfd):
    command = ["human-eval-sheet", "--out", "page.html"]
    assert compare.compare(("longer~1", "workspace"), command, history) == 0
    key = json.loads((history / "page-key.json").read_bytes())
    assert (key["a"], key["b"], len(key["prompts"])) == ("longer~1", "workspace", 3)
    assert "3 pairs" in capfd.readouterr().out


def test_of_a_run_of_another_machine_the_figures_in_git_are_compared_but_a_sheet_needs_its_images(
    history, capfd
):
    """As for a newcomer, whose cache has no output of the clone's commits."""
    assert compare.compare(("lost", "longer~1"), ["compare", "--out", "page.html"], history) == 0
    output, notes = capfd.readouterr()
    missing = "results/samples of lost is neither in DVC's cache nor in its remote"
    assert notes.endswith(f"{missing}: its figures are compared, without images\n")
    assert "−0.100" in output and "the images of lost are not here" in output

    with pytest.raises(UserError) as caught:
        compare.compare(("lost", "longer"), ["human-eval-sheet", "--out", "page.html"], history)
    fix = "With a remote, run: dvc fetch --all-commits results/samples results/ranked; else make that run again: git"
    assert f"{missing}. {fix} checkout" in str(caught.value)
    assert re.search(r"DVC said: ERROR: .*\.dir", str(caught.value))


def test_dvc_shows_the_headline_numbers_of_every_revision_from_git(history):
    differences = json.loads(must(history, "dvc", "metrics", "diff", "--json", "longer~1", "lost"))
    row = differences["results/headline.json"]["clip_score.n1"]
    assert row == {"old": 0.25, "new": 0.35, "diff": pytest.approx(0.1)}


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ("nowhere", "workspace"),
            "'nowhere' is neither a git revision here nor a folder with results/ in it. ",
        ),
        (
            ("longer~2", "workspace"),
            "longer~2 has no dvc.lock, so no run was recorded there. Choose a commit ",
        ),
        (("longer", "HEAD"), "longer and HEAD are the same run: there is nothing to compare. Choose another"),
    ],
)
def test_runs_that_cannot_be_compared_are_rejected_with_the_fix(history, names, message):
    with pytest.raises(UserError) as caught:
        compare.compare(names, ["compare", "--out", "page.html"], history)
    assert message in str(caught.value)


def test_a_run_without_samples_is_rejected(history):
    must(history, "git", "checkout", "-q", "-b", "half", "longer")
    outs = "[{path: models/scorer, md5: 0123}]"
    (history / "dvc.lock").write_text(f"schema: '2.0'\nstages: {{train: {{cmd: x, outs: {outs}}}}}\n")
    commit(history, "Stop half-way")
    must(history, "git", "checkout", "-q", "longer")
    message = "the dvc.lock of half has no results/samples: that run did not get so far"
    with pytest.raises(UserError, match=message):
        find("half", history)


def test_the_command_ends_with_one_sentence(history):
    result = command(history, "python", "-m", "flows.compare", "nowhere", "workspace")
    assert result.returncode == 2
    assert result.stderr.startswith("compare: 'nowhere' is neither a git revision here")
