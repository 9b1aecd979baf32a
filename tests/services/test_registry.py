"""The registry's commands: what a version records, what the gate rejects, and rollbacks.

Rows F3 and F4 of the reliability plan.
"""

import json
import shutil

import mlflow
import pytest
import yaml

import thousandwords
from flows.registry.__main__ import main
from flows.registry.commands import PromotionRejected, fetch, list_versions, promote, register, rollback, show
from flows.registry.version_files import read_file
from flows.registry.versions import NAME
from tests.helpers.paths import ROOT
from tests.helpers.registered_models import champion, client, package_images, plant, run_rollback
from tests.helpers.registering import METRICS, run_git, train
from tests.helpers.tiny_models import flipped
from tests.services.test_registry_evidence import write_other_tokens
from thousandwords.core.errors import UserError
from thousandwords.core.files import write_json
from thousandwords.core.manifest import DamagedArtefact, read_manifest, write_manifest


def test_a_version_records_what_it_was_made_from_and_the_list_shows_its_aliases(project):
    newest, oldest = show(project)
    assert newest.startswith("version 2  package ") and newest.endswith("  sound @challenger @champion")
    assert oldest.endswith("  sound")
    version = client().get_model_version(NAME, "2")
    assert version.tags == {
        "package.sha256": read_manifest(project / "models/package")["sha256"],
        "git.commit": run_git(project, "rev-parse", "HEAD"),
        "data.licence": "CC-BY-4.0",
        "soundness": "sound",
        **{tag: version.tags[tag] for tag in ("files.sha256", "content.sha256")},
    }
    evidence = json.loads(read_file(client(), version, "evidence.json"))
    assert evidence["runs"]["train_generator"] == "run-of-train_generator" and len(evidence["lock"]) == 64
    card = read_file(client(), version, "model_card.md").decode()
    assert version.description == card and "## Intended use" in card


def test_mlflow_can_compare_versions_by_their_settings_and_figures(project):
    run = client().get_run(client().get_model_version(NAME, "2").run_id)
    assert run.data.params == {"seed": "0", "sampling.candidates": "4"}
    assert run.data.metrics["reconstruction.psnr_hard"] == 30 and run.data.metrics["clip_score.best"] == 0.9


def test_a_card_that_is_too_long_for_mlflow_ends_with_a_note(project):
    manifest = read_manifest(project / "data/pairs", verify=False)
    settings = {"path": "data/own", "licence": "CC-BY-4.0", "origin": "https://example.org/" + "cats" * 2000}
    write_manifest(project / "data/pairs", {}, {**manifest["facts"], "settings": settings})
    write_json(project / "results/metrics.json", {**METRICS, "n": 5})  # another version
    version = client().get_model_version(NAME, register(project))
    assert len(version.description) == 5000
    assert version.description.endswith("cats\n\n*Cut here: model_card.md of this version has all of it.*")


def test_only_another_package_or_other_metrics_are_another_version(project):
    run_git(project, "commit", "-q", "--allow-empty", "-m", "another commit, the same package")
    assert register(project) == "2" and len(show(project)) == 2
    write_json(project / "results/metrics.json", {**METRICS, "clip_score": {"n1": 0.81}})
    assert register(project) == "3"


def test_register_says_what_promote_would_reject_and_show_names_versions_of_this_folder_elsewhere(
    project, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(project)
    (project / "params.yaml").write_text("seed: 0\nsampling: {candidates: 4}\n# edited\n")
    main(["register"])
    reasons = "- the git tree has uncommitted changes. Commit them (dvc.lock too), then register it again"
    assert capsys.readouterr().out == f"version 3 is the challenger; promote would reject it:\n{reasons}\n"

    (project / ".mlflow").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "mlflow.db", project / ".mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/empty.db")
    main(["show"])
    nothing, local = capsys.readouterr().out.splitlines()
    assert nothing.startswith("nothing has been registered yet") and local.startswith(
        "3 more in this folder's own"
    )


def test_without_a_package_there_is_nothing_to_register(project):
    shutil.rmtree(project / "models/package")
    message = "models/package/manifest.json is missing.* Run: dvc repro package_model"
    with pytest.raises(DamagedArtefact, match=message):
        register(project)


def test_an_empty_registry_says_what_to_do(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/empty.db")
    assert show(project) == []
    with pytest.raises(UserError, match="there is no champion, .* Run: make promote"):
        rollback(project)
    with pytest.raises(UserError, match="no version 'challenger' of thousandwords. Run: .* register"):
        promote(project)


def test_the_address_of_an_mlflow_that_does_not_answer_is_named(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9 cannot be used .* Start it, or unset"):
        show(project)


@pytest.mark.parametrize("command", ["show", "promote", "rollback", "fetch"])
def test_a_damaged_database_is_one_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/mlflow.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(SystemExit) as ended:
        main([command])
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.count("\n") == 1
    assert message.startswith(f"registry: MLflow at sqlite:///{tmp_path}/.mlflow/mlflow.db cannot be used (")
    assert (
        "file is not a database). Bring back a copy of that file, or move it away: its versions are"
        in message
    )


def test_a_fetched_package_is_not_fetched_again_unless_it_is_damaged(project, tmp_path):
    package = fetch("1", tmp_path / "fetched", project)
    weights = package / "generator/weights.safetensors"
    before = weights.stat()
    assert fetch("1", tmp_path / "fetched", project) == package
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    weights.write_bytes(flipped(weights.read_bytes(), 1000))
    assert package_images(fetch("1", tmp_path / "fetched", project))
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == [package.parent.parent.name]


def test_a_package_is_not_fetched_into_a_file(project, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="/taken cannot be written: File exists. Check that"):
        fetch("1", tmp_path / "taken", project)


def test_the_library_loads_a_version_by_the_clone_that_it_runs_in(project, monkeypatch):
    (project / "dvc.yaml").touch()
    (project / "flows").mkdir()  # empty: its code is found at PYTHONPATH
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    model = thousandwords.load("models:/thousandwords@champion", device="cpu")
    assert model.package.fingerprint == read_manifest(project / "models/package")["sha256"]


@pytest.mark.parametrize("version", ["7", "production"])
def test_a_failed_command_ends_with_one_sentence(project, monkeypatch, capsys, version):
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as ended:
        main(["fetch", version])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"registry: the registry has no version '{version}' of thousandwords. "
        "Run: python -m flows.registry show, which lists them\n"
    )


def test_after_a_rollback_images_are_those_of_the_earlier_version_byte_for_byte(project, tmp_path):
    first = package_images(fetch("1", tmp_path / "a", project))
    second = package_images(fetch("champion", tmp_path / "b", project))
    assert second == package_images(project / "models/package")

    seconds, wall, output = run_rollback(project)

    # bench/reliability.md holds these against the bar of 5 s: a test has no clock of its own
    print(f"F4: rollback as a command on a database: {wall:.1f} s, {seconds:.1f} s of CPU")
    assert output == "version 1 is the champion again\n"
    assert package_images(fetch("champion", tmp_path / "c", project)) == first != second


def test_each_rollback_goes_one_champion_further_back_also_through_one_that_was_champion_twice(project):
    promote(project, "1")
    assert [rollback(project), rollback(project)] == ["2", "1"]


def test_a_rollback_to_a_version_with_a_missing_file_is_rejected(project, tmp_path):
    plant(tmp_path, lambda folder: (folder / "artifacts/package/scorer/config.json").unlink())
    client().set_registered_model_alias(NAME, "champion", "3")
    promote(project, "2")
    message = "version 3 .*scorer/config.json should be .* bytes, found no such file"
    with pytest.raises(DamagedArtefact, match=message):
        rollback(project)
    assert champion() == "2"


def register_worse(project, tmp_path) -> None:
    train(project, seed=2, reconstruction={"psnr_hard": 29.0})
    register(project)


def register_without_metrics(project, tmp_path) -> None:
    train(project, seed=2)
    (project / "results/metrics.json").unlink()
    register(project)


def plant_flipped(project, tmp_path) -> None:
    def flip(folder):
        weights = folder / "artifacts/package/generator/weights.safetensors"
        weights.write_bytes(flipped(weights.read_bytes(), 5000))

    plant(tmp_path, flip)


def create_without_pins(project, tmp_path) -> None:
    client().create_model_version(NAME, client().get_model_version(NAME, "1").source)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (register_worse, r"version 3 was not promoted against champion 2:\n- reconstruction.psnr_hard is 29, worse than"),
        (register_without_metrics, "results/metrics.json is missing, but dvc.lock names it. Run: dvc checkout(.|\n)*never ev"),
        (plant_flipped, "generator/weights.safetensors is damaged: sha256 should be"),
        (create_without_pins, "version 3 of thousandwords pins no files .*so it was not registered completely"),
    ],
)  # fmt: skip
def test_a_version_that_is_worse_unevaluated_or_not_as_registered_is_rejected_and_the_champion_stays(
    project, tmp_path, make, message
):
    make(project, tmp_path)
    with pytest.raises((PromotionRejected, DamagedArtefact), match=message):
        promote(project, "3")
    assert champion() == "2"


def test_the_last_registered_is_the_challenger_and_a_better_one_becomes_champion(project):
    train(project, seed=2, reconstruction={"psnr_hard": 31.0})
    assert register(project) == "3" and show(project)[0].endswith("  sound @challenger")
    assert promote(project) == champion() == "3"


def test_the_gate_of_params_yaml_decides(project, tmp_path):
    register_worse(project, tmp_path)
    gate = {"metrics": [{"name": "reconstruction.psnr_hard", "better": "higher", "margin": 2.0}]}
    (project / "params.yaml").write_text(yaml.safe_dump({"gate": {"minimum_prompts": 101, **gate}}))
    message = "its figures come from 100 prompts, but gate.minimum_prompts is 101"
    with pytest.raises(PromotionRejected, match=message):
        promote(project)
    (project / "params.yaml").write_text(yaml.safe_dump({"gate": gate}))
    assert promote(project) == "3"


def test_the_problems_of_a_version_are_stored_with_it(project):
    write_other_tokens(project)
    assert register(project) == "3"
    train(project, seed=1)
    for _ in range(2):
        with pytest.raises(PromotionRejected, match="data/tokens was written by another image tokenizer"):
            promote(project, "3")
    assert show(project)[0].endswith("  1 problem @challenger")
    version = fetch("3", project / "fetched", project).parent.parent
    assert "**Problems**" in (version / "model_card.md").read_text()
    assert "| folder | CC-BY-4.0 | https://example.org/cats |" in (version / "data_card.md").read_text()


@pytest.fixture
def other_registry(project, tmp_path, monkeypatch):
    """The folder has a registry of its own, with two versions, and uses another one, which is empty."""
    (project / ".mlflow").mkdir()
    shutil.copy(tmp_path / "mlflow.db", project / ".mlflow/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    monkeypatch.chdir(project)
    return project


@pytest.mark.parametrize("is_old", [False, True])  # versions of an earlier commit have no such tag
def test_the_folders_own_versions_are_copied_to_the_registry_in_use_with_their_aliases(
    other_registry, two_versions, capsys, is_old
):
    own = mlflow.MlflowClient(f"sqlite:///{other_registry}/.mlflow/mlflow.db")
    for number in ("1", "2") if is_old else ():
        own.delete_model_version_tag(NAME, number, "content.sha256")
    main(["copy"])
    assert capsys.readouterr().out == "copied: versions 1, 2\n"
    second, first = list_versions()
    assert (first.aliases, second.aliases) == ((), ("challenger", "champion"))
    package = fetch("champion", other_registry / "fetched")
    assert package_images(package) == package_images(two_versions / "models/package")
    data = client().get_run(client().get_model_version(NAME, "2").run_id).data
    assert data.tags["copied.from"] == "version 2" and data.params and data.metrics
    main(["copy"])
    assert capsys.readouterr().out == "all versions were there already\n"


def test_a_damaged_version_is_not_copied_and_without_another_registry_copy_says_so(
    other_registry, monkeypatch, capsys
):
    own = mlflow.MlflowClient(f"sqlite:///{other_registry}/.mlflow/mlflow.db")
    own.set_model_version_tag(NAME, "2", "files.sha256", "0" * 64)
    with pytest.raises(SystemExit, match="2"):
        main(["copy"])
    assert "version 2 of thousandwords: its manifest is" in capsys.readouterr().err
    assert [version.number for version in list_versions()] == ["1"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(SystemExit, match="2"):
        main(["copy"])
    assert "there is no other registry to copy from" in capsys.readouterr().err
