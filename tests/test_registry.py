"""The registry: a version is whole or not there, the gate decides, a rollback is one command, and nothing of it is ever run.

Rows F1 to F6 of the reliability plan. N of what is marked slow: THOUSANDWORDS_FLIPS, THOUSANDWORDS_KILLS.
"""
from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import tarfile
import threading
import time
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from flows import _evidence, registry
from flows.registry import Refused
from tests.payloads import HOSTILE, PICKLES
from tests.registering import FIGURES, PROMPT, Nursery, new_project, run_git, train
from tests.tiny import HEADER, flipped, tiny, write_shards
from thousandwords import components
from thousandwords.errors import UserError
from thousandwords.files import DamagedArtefact, read_manifest, write_json, write_manifest
from thousandwords.package import load_package

NAME = "thousandwords"


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory):
    """A project with two champions one after the other; to be copied, never changed."""
    root = new_project(tmp_path_factory.mktemp("registry") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert registry.register(root) == "1" and registry.promote(root) == "1"
        train(root, seed=1)
        assert registry.register(root) == "2" and registry.promote(root) == "2"
    return root


@pytest.fixture
def project(two_versions, tmp_path, monkeypatch):
    """A working tree and a registry of a test's own; the files of its two versions are shared, and not to be changed."""
    shutil.copytree(two_versions, tmp_path / "project", ignore=shutil.ignore_patterns(".mlflow"))
    shutil.copy(two_versions / ".mlflow/mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path / "project"


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_URI"])


def champion() -> str:
    return str(client().get_model_version_by_alias(NAME, "champion").version)


def pictures(package: Path) -> list[bytes]:
    return [one.picture.tobytes() for one in load_package(package).draw(PROMPT, candidates=3, seed=5)]


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
    began = time.monotonic()

    assert registry.rollback(project) == "1"

    assert time.monotonic() - began < 5
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


def test_a_champion_that_somebody_set_by_hand_is_rolled_back_to_the_one_before_it(project):
    train(project, seed=2)
    registry.register(project)
    client().set_registered_model_alias(NAME, "champion", "3")
    assert registry.rollback(project) == "2"


def test_a_promotion_killed_before_the_alias_moved_has_changed_nothing(project, monkeypatch):
    train(project, seed=2)
    registry.register(project)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "move", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            registry.promote(project)
    assert champion() == "2" and registry.rollback(project) == "1"


def test_a_rollback_to_a_version_that_lost_a_file_is_refused(project, tmp_path):
    plant(tmp_path, lambda folder: (folder / "artifacts/package/scorer/config.json").unlink())
    client().set_registered_model_tag(NAME, "champions", '["3", "2"]')
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


def other_words(root: Path) -> None:
    write_shards(root / "data/tokens", {"train": 4}, HEADER)


def other_generator(root: Path) -> None:
    components.save(tiny("generators", "transformer", 7), root / "models/generator")


def unbound_generator(root: Path) -> None:
    """A package whose generator says nothing of the words it learned."""
    from thousandwords.drawing import Settings
    from thousandwords.package import PARTS, write_package

    other_generator(root)
    write_package(root / "models/package", {name: root / "models" / name for name in PARTS}, Settings(), {})


def other_samples(root: Path) -> None:
    """dvc.lock of figures that were made from the samples of another generator."""
    named = yaml.safe_load((root / "dvc.lock").read_text())
    next(dep for dep in named["stages"]["sample_images"]["deps"] if dep["path"] == "models/generator")["md5"] = "0" * 32
    (root / "dvc.lock").write_text(yaml.safe_dump(named))


def other_lock(root: Path) -> None:
    (root / "dvc.lock").write_text("stages: {other: {}}")


def other_knob(root: Path) -> None:
    (root / "params.yaml").write_text("seed: 0\nsampling: {candidates: 5}\n")


def other_figures(root: Path) -> None:
    write_json(root / "results/metrics.json", {**FIGURES, "reconstruction": {"psnr_hard": 99.0}})


AGAIN = "Run: dvc repro, then register it again"


@pytest.mark.parametrize(
    "change, said",
    [
        (other_words, "data/tokens was written by another image tokenizer (3f9c3f9c) than the package holds ("),
        (lambda root: shutil.rmtree(root / "data/tokens"), "data/tokens has no sound manifest, so nobody knows whose words"),
        (other_generator, "models/generator is not the part that models/package was made with. Run: dvc repro package_model"),
        (other_generator, "models/generator is not what dvc.lock names. Run: dvc checkout, or dvc repro; then register it again"),
        (unbound_generator, "the generator was trained on words of another image_tokenizer (unknown) than the package holds ("),
        (unbound_generator, "the generator was trained on words of another text_tokenizer (unknown) than the package holds ("),
        (other_samples, f"sample_images ran on another models/generator than train_generator wrote, by dvc.lock. {AGAIN}"),
        (other_figures, "results/metrics.json is not what dvc.lock names. Run: dvc checkout"),
        (lambda root: (root / "dvc.lock").unlink(), f"there is no dvc.lock, so nobody knows what made the package. {AGAIN}"),
        (other_lock, f"dvc.lock names no stage that made models/package. {AGAIN}"),
        (other_knob, f"params.yaml: sampling is not what sample_images ran with. {AGAIN}"),
        (other_knob, "the git tree has changes that no commit holds. Commit them (dvc.lock too), then register it again"),
        (lambda root: shutil.rmtree(root / ".git"), "this is no git repository, so nobody can tell which code"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_speaks_against_a_version(project, change, said):
    assert _evidence.gather(project)["problems"] == []
    change(project)
    assert [problem for problem in _evidence.gather(project)["problems"] if problem.startswith(said)]


def test_a_small_number_is_the_same_in_params_yaml_and_as_dvc_writes_it():
    """dvc.lock has 1e-05 where params.yaml has 0.00001."""
    ran = yaml.safe_load("train: {params: {params.yaml: {scorer: {steps: [1, 2], learning_rate: 1e-05, kind: clip}}}}")
    assert list(_evidence.params_problems(ran, {"scorer": {"steps": [1, 2], "learning_rate": 0.00001, "kind": "clip"}})) == []
    assert len(list(_evidence.params_problems(ran, {"scorer": {"steps": [1, 2], "learning_rate": 0.00002, "kind": "clip"}}))) == 1


def test_what_speaks_against_a_version_stays_with_it(project):
    other_words(project)
    assert registry.register(project) == "3"
    train(project, seed=1)
    for _ in range(2):
        with pytest.raises(Refused, match="data/tokens was written by another image tokenizer"):
            registry.promote(project, "3")
    assert champion() == "2"
    assert registry.show(project)[0].endswith("  1 problem @challenger")
    card = registry.fetch("3", project / "fetched", project).parent.parent / "model_card.md"
    assert "**What speaks against it**" in card.read_text()


# --- F1: aliases that move while they are read -----------------------------------------------------------------------


def flip_and_read(root: Path, folder: Path, flips: int, reads: int, writers: int, readers: int) -> tuple[int, list[str]]:
    """(reads that found a whole version, what went wrong) of writers that move the alias while readers fetch it."""
    errors, found = [], []
    barrier = threading.Barrier(writers + readers)

    def guarded(work, count: int, number: int) -> None:
        barrier.wait()
        for step in range(count):
            try:
                work(step, number)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")

    def write(step: int, number: int) -> None:
        registry.move(client(), "champion", str(1 + (step + number) % 2))

    def read(step: int, number: int) -> None:
        place = registry.fetch("champion", folder / f"{number}-{step}", root)
        found.append(place.parent.parent.name.partition("-")[0])
        shutil.rmtree(folder / f"{number}-{step}")

    works = [(write, flips // writers, number) for number in range(writers)]
    works += [(read, reads // readers, number) for number in range(readers)]
    threads = [threading.Thread(target=guarded, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {"1", "2"}
    return len(found), errors


def test_an_alias_that_moves_always_names_a_whole_version(project, tmp_path):
    whole, errors = flip_and_read(project, tmp_path / "read", flips=200, reads=40, writers=2, readers=2)
    assert (whole, errors) == (40, [])


@pytest.mark.slow
def test_a_thousand_flips_against_a_thousand_reads(project, tmp_path):
    count = int(os.environ.get("THOUSANDWORDS_FLIPS", "1000"))
    began = time.monotonic()
    whole, errors = flip_and_read(project, tmp_path / "read", count, count, writers=4, readers=4)
    print(f"F1: {count} flips by 4 against {whole} reads by 4, {len(errors)} errors, {time.monotonic() - began:.0f} s")
    assert (whole, errors) == (count, [])


# --- F5: a registration that is killed -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nursery(two_versions, tmp_path_factory):
    root = tmp_path_factory.mktemp("nursery") / "project"
    running = Nursery(shutil.copytree(two_versions, root))
    yield running
    running.close()


def check_whole_or_absent(project: Path, folder: Path) -> int:
    """How many versions there are, each of them READY and whole, byte for byte."""
    versions = client().search_model_versions(f"name='{NAME}'")
    for version in versions:
        assert version.status == "READY"
        load_package(registry.fetch(str(version.version), folder, project))
    return len(versions)


@pytest.mark.parametrize("place, versions", [("version-stored:1", 2), ("version-created:1", 3)])
def test_a_killed_registration_leaves_no_version_or_a_whole_one(project, tmp_path, nursery, place, versions):
    train(project, seed=2)
    code, _ = nursery.run(project, failpoint=place)
    assert code == -9 and check_whole_or_absent(project, tmp_path / "seen") == versions

    assert nursery.run(project)[0] == 0
    assert check_whole_or_absent(project, tmp_path / "seen") == 3
    assert registry.promote(project) == "3"


def kill_registrations(project: Path, folder: Path, nursery: Nursery, count: int) -> list[int]:
    """Kills `count` registrations at random moments, each of other models; the number of versions after each."""
    train(project, seed=100)
    code, whole = nursery.run(project)
    assert code == 0
    moments, left = random.Random(0), []
    for number in range(count):
        train(project, seed=200 + number)
        code, _ = nursery.run(project, after=moments.uniform(0, whole))
        assert code in (-9, 0)
        left.append(check_whole_or_absent(project, folder))
    return left


def test_registrations_killed_at_random_moments_leave_whole_versions_alone(project, tmp_path, nursery):
    left = kill_registrations(project, tmp_path / "seen", nursery, 2)
    assert left == sorted(left)


@pytest.mark.slow
def test_many_registrations_killed_at_random_moments(project, tmp_path, nursery):
    count = int(os.environ.get("THOUSANDWORDS_KILLS", "20"))
    left = kill_registrations(project, tmp_path / "seen", nursery, count)
    print(f"F5: {count} registrations killed at random moments: {left[-1] - 3} versions whole, 0 in part")


# --- a version that somebody put together or changed -----------------------------------------------------------------


def plant(folder: Path, change, pins: dict[str, str] | None = None) -> Path:
    """Version 3: a copy of version 1 with `change` made to its files, under the tags of version 1 or `pins` instead."""
    first = client().get_model_version(NAME, "1")
    planted = folder / "planted"
    shutil.copytree(registry.local_file_uri_to_path(first.source), planted)
    change(planted)
    client().create_model_version(NAME, planted.as_uri(), tags={**first.tags, **(pins or {})})
    return planted


def sealed(folder: Path) -> dict[str, str]:
    """Makes every manifest in `folder` agree with what lies there; returns the tags that pin it: nothing is left to a hash."""
    package = folder / "artifacts/package"
    parts = {}
    for part in sorted(path for path in package.iterdir() if path.is_dir()):
        names = [path.name for path in part.iterdir() if path.name != "manifest.json"]
        parts[part.name] = write_manifest(part, dict.fromkeys(names), {})["sha256"]
    facts = json.loads((package / "package.json").read_bytes())
    write_json(package / "package.json", {**facts, "parts": parts})
    write_manifest(package, {"package.json": None}, {"parts": parts})
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    outside = ["../outside.json"] if (folder.parent / "outside.json").exists() else []
    named = [name for name in files if name != "manifest.json"] + outside
    return {"files.sha256": write_manifest(folder, dict.fromkeys(named), {})["sha256"]}


def refusal(root: Path, folder: Path) -> tuple[str, float, int]:
    """(what is said of version 3, after how many seconds of this process, how many MB more)"""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError) as caught:
        load_package(registry.fetch("3", folder, root))
    return str(caught.value), time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_artefact_in_a_stored_version_is_refused(project, tmp_path, name):
    marker = tmp_path / "marker"
    folder = plant(tmp_path, lambda folder: HOSTILE[name](folder, marker))
    if name == "name out of the version":
        sealed(folder)  # the manifest itself is what was changed

    said, seconds, megabytes = refusal(project, tmp_path / "fetched")

    assert said.startswith("version 3 of thousandwords") or said.startswith(str(tmp_path / "fetched")), said
    assert not marker.exists() and seconds < 2 and megabytes < 100
    assert not list((tmp_path / "fetched").glob("*"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_version_with_hashes_of_its_own_is_refused(project, tmp_path, name):
    marker, pins = tmp_path / "marker", {}
    plant(tmp_path, lambda folder: pins.update((HOSTILE[name](folder, marker), sealed(folder))[1]), pins)

    said, seconds, megabytes = refusal(project, tmp_path / "fetched")

    assert said.startswith("version 3 of thousandwords") and said.endswith("Do not use it; register a package of your own") or (
        "which is a link or a device" in said
    ), said
    assert not marker.exists() and seconds < 2 and megabytes < 100
    assert not list((tmp_path / "fetched").glob("*"))


def test_a_manifest_that_is_not_the_pinned_one_is_refused(project, tmp_path):
    plant(tmp_path, sealed)
    with pytest.raises(DamagedArtefact, match="version 3 .*: its manifest is [0-9a-f]{12}, but its tag pins [0-9a-f]{12}"):
        registry.fetch("3", tmp_path / "fetched", project)


@pytest.mark.parametrize(
    "changes",
    [
        {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"},
        {"loader_module": "antigravity"},
        {"model_code_path": "conda.yaml"},
        {"python_model": "requirements.txt"},
        {"code": "artifacts"},
        {"data": "artifacts/package"},
        {"artifacts": {"package": {"path": "../elsewhere"}}},
        {"artifacts": {"package": {"path": "artifacts/package"}, "more": {"path": "artifacts"}}},
        {"artifacts": None},
    ],
)
def test_a_description_that_names_anything_else_to_run_is_refused(project, tmp_path, changes):
    def change(folder: Path) -> None:
        described = yaml.safe_load((folder / "MLmodel").read_text())
        described["flavors"]["python_function"] |= changes
        (folder / "MLmodel").write_text(yaml.safe_dump(described))
        pins.update(sealed(folder))

    pins = {}
    plant(tmp_path, change, pins)
    with pytest.raises(DamagedArtefact, match="version 3 of thousandwords: MLmodel (names other code|is no description)"):
        registry.fetch("3", tmp_path / "fetched", project)


def test_a_version_sealed_anew_without_a_payload_is_taken(project, tmp_path):
    """So what the test before refuses is the payload."""
    pins = {}
    plant(tmp_path, lambda folder: pins.update(sealed(folder)), pins)
    assert pictures(registry.fetch("3", tmp_path / "fetched", project))


@pytest.mark.parametrize("name", PICKLES)
def test_each_pickle_would_run_if_it_were_unpickled(tmp_path, name):
    data = PICKLES[name](tmp_path / "marker")
    if name == "torch bytes in torch bytes":
        data = torch.load(io.BytesIO(data), weights_only=False)["weights"]
        torch.load(io.BytesIO(data), weights_only=False)
    elif name == "legacy tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            pickle.load(tar.extractfile("pickle"))
    else:
        pickle.loads(data)
    assert (tmp_path / "marker").exists()
