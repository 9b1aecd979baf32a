"""The registry's commands: a version tells what it was made from, the gate decides, a rollback is one command.

Rows F3 and F4 of the reliability plan.
"""
from __future__ import annotations

import shutil

import pytest
import yaml

from flows import registry
from flows.registry import Refused
from tests.registered import NAME, champion, client, pictures, plant, run_rollback
from tests.registering import FIGURES, run_git, train
from tests.test_evidence import other_words
from tests.tiny import flipped
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, read_manifest, write_json

# --- registering -----------------------------------------------------------------------------------------------------


def test_a_version_tells_what_it_was_made_from(project):
    tags = client().get_model_version(NAME, "2").tags
    assert tags["package.sha256"] == read_manifest(project / "models/package")["sha256"]
    assert tags["git.commit"] == run_git(project, "rev-parse", "HEAD") and tags["git.is_dirty"] == "false"
    assert len(tags["dvc.lock.sha256"]) == 64 and tags["data.licence"] == "CC-BY-4.0"
    assert tags["run.train_generator"] == "run-of-train_generator" and tags["run.evaluate"] == "run-of-evaluate"


def test_the_last_registered_is_the_challenger_until_another_is(project):
    assert client().get_model_version_by_alias(NAME, "challenger").version == 2
    train(project, seed=2)
    assert registry.register(project) == "3"
    assert client().get_model_version_by_alias(NAME, "challenger").version == 3
    assert champion() == "2"


def test_registering_the_same_again_gives_the_same_version(project):
    run_git(project, "commit", "-q", "--allow-empty", "-m", "another commit, the same package")
    assert registry.register(project) == "2"
    assert len(client().search_model_versions(f"name='{NAME}'")) == 2


def test_other_figures_of_the_same_package_are_another_version(project):
    write_json(project / "results/metrics.json", {**FIGURES, "clip_score": {"n1": 0.81}})
    assert registry.register(project) == "3"


def test_the_list_shows_each_version_with_its_aliases(project):
    newest, oldest = registry.show(project)
    assert newest.startswith("version 2  package ") and newest.endswith("  sound @challenger @champion")
    assert oldest.endswith("  sound")


def test_without_a_package_there_is_nothing_to_register(project):
    shutil.rmtree(project / "models/package")
    with pytest.raises(DamagedArtefact, match="models/package/manifest.json is missing.* Run: dvc repro package_model"):
        registry.register(project)


def test_where_mlflow_does_not_answer_the_address_is_named(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9 did not do what was asked"):
        registry.show(project)


# --- fetching --------------------------------------------------------------------------------------------------------


def test_a_fetched_package_draws_what_the_local_one_draws(project, tmp_path):
    package = registry.fetch("champion", tmp_path / "fetched", project)
    assert pictures(package) == pictures(project / "models/package")


def test_what_was_fetched_is_not_fetched_again_and_what_was_damaged_is(project, tmp_path):
    package = registry.fetch("1", tmp_path / "fetched", project)
    weights = package / "generator/weights.safetensors"
    before = weights.stat()
    assert registry.fetch("1", tmp_path / "fetched", project) == package
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    weights.write_bytes(flipped(weights.read_bytes(), 1000))
    assert pictures(registry.fetch("1", tmp_path / "fetched", project))
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == [package.parent.parent.name]


@pytest.mark.parametrize("wanted, mend", [("7", "register"), ("production", "register")])
def test_a_version_that_is_not_there_is_named(project, tmp_path, wanted, mend):
    with pytest.raises(UserError, match=f"the registry has no version '{wanted}' of thousandwords. Run: .*{mend}"):
        registry.fetch(wanted, tmp_path, project)


def test_the_command_ends_with_one_sentence(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as ended:
        registry.main(["fetch", "9"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("registry: the registry has no version '9' of thousandwords. Run: ")
    registry.main(["rollback"])
    assert capsys.readouterr().out == "version 1 is the champion again\n"


# --- F4: rolling back ------------------------------------------------------------------------------------------------


def test_after_a_rollback_samples_are_the_earlier_versions_byte_for_byte(project, tmp_path):
    first = pictures(registry.fetch("1", tmp_path / "a", project))
    second = pictures(registry.fetch("champion", tmp_path / "b", project))

    seconds, wall, said = run_rollback(project)

    print(f"F4: rollback as a command on a database: {wall:.1f} s, {seconds:.1f} s of them its own")
    assert said == "version 1 is the champion again\n" and seconds < 5
    assert pictures(registry.fetch("champion", tmp_path / "c", project)) == first != second


def test_rolling_back_twice_says_that_there_is_nothing_before_the_first(project):
    registry.rollback(project)
    with pytest.raises(UserError) as caught:
        registry.rollback(project)
    assert str(caught.value) == "no version was champion before version 1: there is nothing to roll back to"
    assert champion() == "1"


def test_each_rollback_goes_one_champion_further_back_also_through_one_that_came_twice(project):
    registry.promote(project, "1")
    assert [registry.rollback(project), registry.rollback(project)] == ["2", "1"]


def test_a_rollback_to_a_version_that_lost_a_file_is_refused(project, tmp_path):
    plant(tmp_path, lambda folder: (folder / "artifacts/package/scorer/config.json").unlink())
    client().set_registered_model_alias(NAME, "champion", "3")
    registry.promote(project, "2")
    with pytest.raises(DamagedArtefact, match="version 3 .*scorer/config.json should be .* bytes, found no such file"):
        registry.rollback(project)
    assert champion() == "2"


# --- F3: what is not promoted ----------------------------------------------------------------------------------------


def test_a_worse_version_is_refused_and_the_champion_stays(project):
    train(project, seed=2, reconstruction={"psnr_hard": 29.0})
    registry.register(project)
    with pytest.raises(Refused) as caught:
        registry.promote(project)
    assert str(caught.value) == (
        "version 3 was not promoted beside champion 2:\n"
        "- reconstruction.psnr_hard is 29, worse than the champion's 30 by more than the margin 0.3"
    )
    assert champion() == "2"


def test_a_better_version_becomes_champion(project):
    train(project, seed=2, reconstruction={"psnr_hard": 31.0})
    assert registry.register(project) == registry.promote(project) == champion() == "3"


def test_the_gate_of_params_yaml_decides(project):
    train(project, seed=2, reconstruction={"psnr_hard": 29.0})
    registry.register(project)
    gate = {"metrics": [{"name": "reconstruction.psnr_hard", "better": "higher", "margin": 2.0}]}
    (project / "params.yaml").write_text(yaml.safe_dump({"gate": {"minimum_prompts": 101, **gate}}))
    with pytest.raises(Refused, match="its figures come from 100 prompts, but gate.minimum_prompts is 101"):
        registry.promote(project)
    (project / "params.yaml").write_text(yaml.safe_dump({"gate": gate}))
    assert registry.promote(project) == "3"


def test_a_version_that_was_never_evaluated_is_refused(project):
    train(project, seed=2)
    (project / "results/metrics.json").unlink()
    registry.register(project)
    with pytest.raises(Refused, match="it was never evaluated: results/metrics.json is missing") as caught:
        registry.promote(project)
    assert "results/metrics.json is missing, but dvc.lock names it. Run: dvc checkout" in str(caught.value)
    assert champion() == "2"


def test_a_version_whose_bytes_are_not_the_pinned_ones_is_refused(project, tmp_path):
    def flip(folder):
        weights = folder / "artifacts/package/generator/weights.safetensors"
        weights.write_bytes(flipped(weights.read_bytes(), 5000))

    plant(tmp_path, flip)
    with pytest.raises(DamagedArtefact, match="generator/weights.safetensors is damaged: sha256 should be"):
        registry.promote(project, "3")
    assert champion() == "2"


def test_a_version_without_pins_is_refused(project):
    client().create_model_version(NAME, client().get_model_version(NAME, "1").source)
    with pytest.raises(DamagedArtefact, match="version 3 of thousandwords pins no files .*so it was not registered whole"):
        registry.promote(project, "3")


def test_what_speaks_against_a_version_stays_with_it(project):
    other_words(project)
    assert registry.register(project) == "3"
    train(project, seed=1)
    for _ in range(2):
        with pytest.raises(Refused, match="data/tokens was written by another image tokenizer"):
            registry.promote(project, "3")
    assert champion() == "2"
    assert registry.show(project)[0].endswith("  1 problem @challenger")
    version = registry.fetch("3", project / "fetched", project).parent.parent
    assert "**What speaks against it**" in (version / "model_card.md").read_text()
    assert "| folder | CC-BY-4.0 | https://example.org/cats |" in (version / "data_card.md").read_text()
