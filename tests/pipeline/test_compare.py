"""make compare: runs named by revisions, by "workspace" or by folders; what DVC knows of them; what cannot be compared."""
from __future__ import annotations

import json
import shutil

import pytest
import yaml

from flows import compare
from flows._outputs import fetch, find
from tests.clones import ROOT, command, must
from tests.two_runs import BETTER, METRICS, write_run
from thousandwords.errors import UserError

CAPTIONS = ["a cat", "a hill", "a red star"]
STAGE = {
    "cmd": "mkdir -p results models && echo same > models/scorer && cp -r made/results/. results", "deps": ["made"],
    "params": ["steps"], "outs": ["results/samples", "results/ranked", "models/scorer"], "metrics": ["results/metrics.json"],
}  # fmt: skip


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Four commits: nothing run, a first run, a better one ("longer"), one whose outputs are in no cache ("lost")."""
    root = tmp_path_factory.mktemp("history") / "project"
    root.mkdir()
    for words in (("git", "init", "-q", "-b", "main"), ("dvc", "init", "-q")):
        must(root, *words)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": STAGE}}))
    (root / ".gitignore").write_text("/made\n/results\n/models\n/page*\n")
    commit(root, "Begin")
    for steps, grey, metrics, subject in ((10, 10, METRICS, "A first run"), (20, 100, BETTER, "Train twice as long")):
        shutil.rmtree(root / "made", ignore_errors=True)
        write_run(root / "made", CAPTIONS, grey, metrics)
        (root / "params.yaml").write_text(f"steps: {steps}\n")
        must(root, "dvc", "repro", "-q")
        commit(root, subject)
    must(root, "git", "tag", "longer")
    text = (root / "dvc.lock").read_text()
    samples = next(out for out in yaml.safe_load(text)["stages"]["evaluate"]["outs"] if out["path"] == "results/samples")
    (root / "dvc.lock").write_text(text.replace(samples["md5"], "0" * 32 + ".dir"))
    commit(root, "Lose the pictures")
    must(root, "git", "tag", "lost")
    must(root, "git", "checkout", "-q", "longer")
    return root


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """What runs in the other project is the library of this one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def commit(root, subject: str) -> None:
    must(root, "git", "add", "-A")
    must(root, "git", "commit", "-qm", subject)


def test_a_revision_beside_the_folder_as_it_stands_with_all_that_git_and_dvc_know(history, capfd):
    code = compare.compare(("longer~1", "workspace"), ["compare", "--out", "page.html"], history)

    page, said = (history / "page.html").read_text(), capfd.readouterr().out
    assert code == 0 and "longer~1" in page and "A first run" in page
    assert "this folder as it stands, on top of: Train twice as long" in page and "<code>steps</code>" in page
    assert "+0.100  better" in said and "3 prompts in common" in said  # the scorer is the same by dvc.lock
    assert "seconds.evaluate" in page and "3 prompts were drawn by both" in page


def test_what_is_told_is_what_dvc_says_differs(history):
    told = compare.told_of(find("longer~1", history), find("longer", history), history)

    assert told["params"] == {"steps": {"old": 10, "new": 20, "diff": 10}} and told["same_parts"] == ["scorer"]
    assert told["metrics"]["clip_score.n1"] == {"old": 0.25, "new": 0.35, "diff": pytest.approx(0.1)}
    assert told["a"]["subject"] == "A first run"
    assert told["a"]["commit"] == must(history, "git", "rev-parse", "--short", "longer~1").strip()


def test_a_folder_of_another_run_is_taken_as_it_is(history, tmp_path):
    other = write_run(tmp_path / "other", CAPTIONS, 7)

    found = find(str(other), history)

    assert fetch(found, tmp_path / "nowhere", history) == other and not (tmp_path / "nowhere").exists()
    assert "params" not in compare.told_of(found, find("workspace", history), history)


def test_a_sheet_is_made_of_the_same_runs(history, capfd):
    assert compare.compare(("longer~1", "longer"), ["sheet", "--out", "page.html"], history) == 0
    key = json.loads((history / "page-key.json").read_bytes())
    assert (key["a"], key["b"], len(key["prompts"])) == ("longer~1", "longer", 3) and "3 pairs" in capfd.readouterr().out


@pytest.mark.parametrize(
    "names, said",
    [
        (("nowhere", "workspace"), "'nowhere' is no git revision here, and no folder with results/ in it. Give a commit, branch"),
        (("--all", "workspace"), "'--all' is no git revision here"),
        (("longer~2", "workspace"), "longer~2 has no dvc.lock, so no run was recorded there. Choose one that has: git log"),
        (("longer", "longer"), "longer and longer are the same run: there is nothing to compare. Choose another one: git log"),
        (("longer", "HEAD"), "longer and HEAD are the same run"),
        (("lost", "longer"), "results/samples of lost is neither in DVC's cache nor in its remote. With a remote, run: dvc fetch "
                             "--all-commits results/samples results/ranked; else make that run again: git checkout"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_with_the_mend(history, names, said):
    with pytest.raises(UserError) as refused:
        compare.compare(names, ["compare", "--out", "page.html"], history)
    assert said in str(refused.value)


def test_dvcs_own_error_stands_at_the_end(history, tmp_path):
    with pytest.raises(UserError, match=r"DVC said: ERROR: .*\.dir"):
        fetch(find("lost", history), tmp_path, history)


def test_a_run_that_never_drew_is_refused(history):
    must(history, "git", "checkout", "-q", "-b", "half", "longer")
    (history / "dvc.lock").write_text("schema: '2.0'\nstages: {train: {cmd: x, outs: [{path: models/scorer, md5: 0123}]}}\n")
    commit(history, "Stop half-way")
    must(history, "git", "checkout", "-q", "longer")
    with pytest.raises(UserError, match="the dvc.lock of half knows of no results/samples: its run never came so far"):
        find("half", history)


def test_the_command_ends_with_a_sentence(history):
    ended = command(history, "python", "-m", "flows.compare", "nowhere", "workspace")
    assert ended.returncode == 2 and ended.stderr.startswith("compare: 'nowhere' is no git revision here")
